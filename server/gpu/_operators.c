/* Three operators for onnxruntime, of the domain "vilt", which run the kernels of kernels.cu.

   A graph has a function of standard operators for each (export/kernels.py), which onnxruntime runs where this library is not
   registered. How a kernel is launched is given, by cuLaunchKernel's address: nothing here needs CUDA to be built, and
   tests launch the kernels on a CPU.

   Source: onnxruntime_c_api.h. OrtApi only grows at its end, so what is skipped here stays as long as it is. */

#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { API_VERSION = 18, IS_FLOAT = 1, IS_BOOL = 9, IS_HALF = 10, FAILED = 1 };  /* onnxruntime's numbers */
enum { LANES = 32, WARPS = 4, QUERIES = 16 * WARPS, GELU_THREADS = 256, LARGEST_HIDDEN = 1024 };  /* as in kernels.cu */
enum { MOST = 3 };  /* dimensions, inputs, outputs */

typedef void *Status;  /* NULL without an error */
typedef struct Operator Operator;

typedef struct {  /* OrtApi */
    Status (*create_status)(int code, const char *message);
    void *skipped_1[25];
    Status (*create_domain)(const char *name, void **domain);
    Status (*add_to_domain)(void *domain, const Operator *);
    Status (*add_domain)(void *session_options, void *domain);
    void *skipped_29[22];
    Status (*data)(void *value, void **data);
    void *skipped_52[9];
    Status (*count_dimensions)(const void *shape, size_t *count);
    Status (*dimensions)(const void *shape, int64_t *dimensions, size_t count);
    void *skipped_63[2];
    Status (*shape)(const void *value, void **shape);
    void *skipped_66[19];
    Status (*float_attribute)(const void *node, const char *name, float *value);
    Status (*int_attribute)(const void *node, const char *name, int64_t *value);
    void *skipped_87[3];
    Status (*input)(const void *context, size_t index, void **value);
    Status (*output)(void *context, size_t index, const int64_t *dimensions, size_t count, void **value);
    void *skipped_92[7];
    void (*release_shape)(void *shape);
    void *skipped_100[93];
    Status (*stream)(const void *context, void **stream);
} Api;

typedef struct {
    const Api *(*api)(uint32_t version);
} ApiBase;

typedef struct {  /* of one node */
    const Api *api;
    const Operator *of;
    int64_t heads, queries;
    float epsilon;
} Node;

struct Operator {  /* OrtCustomOp, and after it what is ours */
    uint32_t version;
    void *create_v1;
    const char *(*get_name)(const Operator *);
    const char *(*get_provider)(const Operator *);
    int (*input_type)(const Operator *, size_t);
    size_t (*count_inputs)(const Operator *);
    int (*output_type)(const Operator *, size_t);
    size_t (*count_outputs)(const Operator *);
    void *compute_v1;
    void (*destroy)(void *node);
    int (*input_kind)(const Operator *, size_t);
    int (*output_kind)(const Operator *, size_t);
    int (*memory)(const Operator *, size_t);
    int (*variadic[4])(const Operator *);
    Status (*create)(const Operator *, const Api *, const void *info, void **node);
    Status (*compute)(void *node, void *context);
    void *infer;
    int (*first_version)(const Operator *);
    int (*last_version)(const Operator *);
    void *aliases[4];

    const char *name;
    int inputs[MOST], outputs[MOST];  /* their types */
    Status (*run)(const Node *, void *context);
};

typedef struct {
    void *data;
    int64_t size[MOST];  /* of a vector the first, and ones */
} Tensor;

typedef int (*Launch)(void *kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared_bytes, void *stream, void **parameters, void **extra);

static char provider[64];
static Launch launch;
enum { ATTEND_32, ATTEND_64, ADD_NORM, BIAS_GELU, KERNELS };
static const char *const kernel_names[KERNELS] = {"attend_32", "attend_64", "add_norm", "bias_gelu"};
static void *kernels[KERNELS];

static Status failed(const Node *node, const char *what, int number) {
    char message[160];
    snprintf(message, sizeof message, "vilt.%s: %s %d", node->of->name, what, number);
    return node->api->create_status(FAILED, message);
}

static Status read_tensor(const Node *node, void *context, size_t index, Tensor *found) {
    void *value, *shape;
    size_t count;
    Status status = node->api->input(context, index, &value);
    if (!status) status = node->api->data(value, &found->data);
    if (!status) status = node->api->shape(value, &shape);
    if (status) return status;
    status = node->api->count_dimensions(shape, &count);
    if (!status && count > MOST) status = failed(node, "dimensions of an input:", (int)count);
    for (int axis = 0; axis < MOST; axis++) found->size[axis] = 1;
    if (!status) status = node->api->dimensions(shape, found->size, count);
    node->api->release_shape(shape);
    return status;
}

static Status make_tensor(const Node *node, void *context, size_t index, Tensor *made) {
    void *value;
    Status status = node->api->output(context, index, made->size, MOST, &value);
    return status ? status : node->api->data(value, &made->data);
}

static Status run_kernel(const Node *node, void *context, int kernel, const int64_t grid[3], unsigned threads, void **given) {
    void *stream = NULL;
    Status status = node->api->stream(context, &stream);
    if (status || grid[0] * grid[1] * grid[2] == 0) return status;
    const int error = launch(kernels[kernel], (unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2], threads, 1, 1, 0,
                             stream, given, NULL);
    return error ? failed(node, "CUDA cannot launch its kernel: error", error) : NULL;
}

static Status run_attention(const Node *node, void *context) {
    Tensor products, bias, mask, attended;
    Status status = read_tensor(node, context, 0, &products);
    if (!status) status = read_tensor(node, context, 1, &bias);
    if (!status) status = read_tensor(node, context, 2, &mask);
    if (status) return status;
    const int64_t batch = products.size[0], hidden = products.size[2] / 3, size = hidden / node->heads;
    int tokens = (int)products.size[1], queries = node->queries < tokens ? (int)node->queries : tokens;
    if (size != 32 && size != 64) return failed(node, "heads have to be 32 or 64 wide, not", (int)size);
    if (products.size[2] != 3 * size * node->heads || bias.size[0] != hidden || mask.size[0] != batch || mask.size[1] != tokens)
        return failed(node, "the bias or the mask does not fit products of width", (int)products.size[2]);
    memcpy(attended.size, (int64_t[]){batch, queries, hidden}, sizeof attended.size);
    if ((status = make_tensor(node, context, 0, &attended))) return status;
    const int64_t grid[3] = {(queries + QUERIES - 1) / QUERIES, node->heads, batch};
    void *given[] = {&products.data, &bias.data, &mask.data, &attended.data, &tokens, &queries};
    return run_kernel(node, context, size == 32 ? ATTEND_32 : ATTEND_64, grid, LANES * WARPS, given);
}

static Status run_add_norm(const Node *node, void *context) {
    Tensor product, stream, bias, added, normed;
    Status status = read_tensor(node, context, 0, &product);
    if (!status) status = read_tensor(node, context, 1, &stream);
    if (!status) status = read_tensor(node, context, 2, &bias);
    if (status) return status;
    int hidden = (int)product.size[2];
    if (hidden % 8 || hidden > LARGEST_HIDDEN) return failed(node, "rows have to be multiples of 8 up to 1024, not", hidden);
    if (bias.size[0] != hidden || memcmp(product.size, stream.size, sizeof product.size))
        return failed(node, "the bias or the stream does not fit a product of width", hidden);
    memcpy(added.size, product.size, sizeof added.size);
    memcpy(normed.size, product.size, sizeof normed.size);
    if ((status = make_tensor(node, context, 0, &added)) || (status = make_tensor(node, context, 1, &normed))) return status;
    const int64_t grid[3] = {product.size[0] * product.size[1], 1, 1};
    float epsilon = node->epsilon;
    void *given[] = {&product.data, &stream.data, &bias.data, &added.data, &normed.data, &hidden, &epsilon};
    return run_kernel(node, context, ADD_NORM, grid, LANES * WARPS, given);
}

static Status run_bias_gelu(const Node *node, void *context) {
    Tensor product, bias, found;
    Status status = read_tensor(node, context, 0, &product);
    if (!status) status = read_tensor(node, context, 1, &bias);
    if (status) return status;
    int width = (int)product.size[2], eighths = (int)(product.size[0] * product.size[1] * width / 8);
    if (width % 8) return failed(node, "rows have to be multiples of 8, not", width);
    if (bias.size[0] != width) return failed(node, "the bias does not fit a product of width", width);
    memcpy(found.size, product.size, sizeof found.size);
    if ((status = make_tensor(node, context, 0, &found))) return status;
    const int64_t grid[3] = {(eighths + GELU_THREADS - 1) / GELU_THREADS, 1, 1};
    void *given[] = {&product.data, &bias.data, &found.data, &eighths, &width};
    return run_kernel(node, context, BIAS_GELU, grid, GELU_THREADS, given);
}

static Status create(const Operator *of, const Api *api, const void *info, void **made) {
    Node *node = calloc(1, sizeof *node);
    if (!node) return api->create_status(FAILED, "out of memory");
    *node = (Node){.api = api, .of = of};
    Status status = NULL;
    if (of->run == run_attention) {
        status = api->int_attribute(info, "heads", &node->heads);
        if (!status) status = api->int_attribute(info, "queries", &node->queries);
        if (!status && node->heads < 1) status = failed(node, "heads:", (int)node->heads);
    } else if (of->run == run_add_norm) {
        status = api->float_attribute(info, "epsilon", &node->epsilon);
    }
    if (status) free(node);
    else *made = node;
    return status;
}

static int count(const int types[MOST]) { return !!types[0] + !!types[1] + !!types[2]; }
static void destroy(void *node) { free(node); }
static Status compute(void *node, void *context) { return ((Node *)node)->of->run(node, context); }
static const char *get_name(const Operator *of) { return of->name; }
static const char *get_provider(const Operator *of) { return (void)of, provider; }
static int input_type(const Operator *of, size_t index) { return of->inputs[index]; }
static size_t count_inputs(const Operator *of) { return (size_t)count(of->inputs); }
static int output_type(const Operator *of, size_t index) { return of->outputs[index]; }
static size_t count_outputs(const Operator *of) { return (size_t)count(of->outputs); }
static int usual(const Operator *of, size_t index) { return (void)of, (void)index, 0; }  /* required, on the device */
static int first_version(const Operator *of) { return (void)of, 1; }
static int last_version(const Operator *of) { return (void)of, INT32_MAX; }

#define OPERATOR \
    .version = API_VERSION, .get_name = get_name, .get_provider = get_provider, .input_type = input_type, \
    .count_inputs = count_inputs, .output_type = output_type, .count_outputs = count_outputs, .destroy = destroy, \
    .input_kind = usual, .output_kind = usual, .memory = usual, .create = create, .compute = compute, \
    .first_version = first_version, .last_version = last_version

static const Operator operators[] = {
    {OPERATOR, .name = "Attention", .inputs = {IS_HALF, IS_FLOAT, IS_BOOL}, .outputs = {IS_HALF}, .run = run_attention},
    {OPERATOR, .name = "AddNorm", .inputs = {IS_HALF, IS_FLOAT, IS_FLOAT}, .outputs = {IS_FLOAT, IS_HALF}, .run = run_add_norm},
    {OPERATOR, .name = "BiasGelu", .inputs = {IS_HALF, IS_FLOAT}, .outputs = {IS_HALF}, .run = run_bias_gelu},
};

/* onnxruntime calls this for each session that registers the library. */
Py_EXPORTED_SYMBOL Status RegisterCustomOps(void *session_options, const ApiBase *base) {
    const Api *api = base->api(API_VERSION);
    if (!launch) return api->create_status(FAILED, "vilt: the kernels have not been loaded");
    static void *domain;  /* for all sessions, and never released: they may use it as long as they like */
    Status status = NULL;
    if (!domain) {
        status = api->create_domain("vilt", &domain);
        for (size_t index = 0; !status && index < sizeof operators / sizeof *operators; index++) {
            status = api->add_to_domain(domain, &operators[index]);
        }
    }
    return status ? status : api->add_domain(session_options, domain);
}

static PyObject *use(PyObject *self, PyObject *args) {
    const char *name;
    unsigned long long address, of[KERNELS];
    (void)self;
    if (!PyArg_ParseTuple(args, "sK(KKKK)", &name, &address, &of[0], &of[1], &of[2], &of[3])) return NULL;
    snprintf(provider, sizeof provider, "%s", name);
    launch = (Launch)(uintptr_t)address;
    for (int index = 0; index < KERNELS; index++) kernels[index] = (void *)(uintptr_t)of[index];
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"use", use, METH_VARARGS, "Take a provider's name, the address of cuLaunchKernel, and a kernel for each of KERNELS."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_operators", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__operators(void) {
    PyObject *module = PyModule_Create(&definition), *names = module ? PyTuple_New(KERNELS) : NULL;
    for (int index = 0; names && index < KERNELS; index++) {
        PyObject *name = PyUnicode_FromString(kernel_names[index]);
        if (!name || PyTuple_SetItem(names, index, name)) Py_CLEAR(names);
    }
    if (!names || PyModule_AddObjectRef(module, "KERNELS", names)) Py_CLEAR(module);
    Py_XDECREF(names);
    return module;
}
