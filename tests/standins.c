/* Stands in for CUDA's libraries and the driver on a machine without a GPU: memory is the host's, kernels do nothing.

   What is not here does nothing and succeeds (standins.py). Launches through the driver, captures and replays are written
   to the file that STANDINS_LOG names. Sources: CUDA Runtime API, CUDA Driver API, cuBLAS. */

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAJOR = 75, MINOR = 76, PROCESSORS = 16, VERSION = 13000, UNSUPPORTED = 500 };

static void tell(const char *format, ...) {
    const char *path = getenv("STANDINS_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (!log) return;
    va_list values;
    va_start(values, format);
    vfprintf(log, format, values);
    va_end(values);
    fclose(log);
}

static int make(void **handle) { return (*handle = calloc(1, 64)) ? 0 : 2; }
static int allocate(void **memory, size_t size) {  /* of zeros: logits that nobody writes are numbers */
    const int failed = posix_memalign(memory, 256, size ? size : 256);
    if (!failed) memset(*memory, 0, size);
    return failed;
}

/* Runtime: memory */
int cudaMalloc(void **memory, size_t size) { return allocate(memory, size); }
int cudaMallocHost(void **memory, size_t size) { return allocate(memory, size); }
int cudaHostAlloc(void **memory, size_t size, unsigned flags) { return (void)flags, allocate(memory, size); }
int cudaFree(void *memory) { return free(memory), 0; }
int cudaFreeHost(void *memory) { return free(memory), 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { return (void)kind, memmove(to, from, size), 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    return (void)stream, cudaMemcpy(to, from, size, kind);
}
int cudaMemset(void *to, int value, size_t size) { return memset(to, value, size), 0; }
int cudaMemsetAsync(void *to, int value, size_t size, void *stream) { return (void)stream, cudaMemset(to, value, size); }
int cudaMemGetInfo(size_t *left, size_t *all) { return *left = *all = (size_t)1 << 36, 0; }
int cudaHostRegister(void *memory, size_t size, unsigned flags) { return (void)memory, (void)size, (void)flags, 0; }

/* Runtime: the device, a GPU of compute capability 9.0 */
int cudaGetDevice(int *device) { return *device = 0, 0; }
int cudaGetDeviceCount(int *count) { return *count = 1, 0; }
int cudaDriverGetVersion(int *version) { return *version = VERSION, 0; }
int cudaRuntimeGetVersion(int *version) { return *version = VERSION, 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == MAJOR ? 9 : attribute == MINOR ? 0 : attribute == PROCESSORS ? 132 : 1024;
    return 0;
}
int cudaGetDeviceProperties(unsigned char *all, int device) {  /* cudaDeviceProp, as far as onnxruntime reads it */
    (void)device;
    memset(all, 0, 1008);
    strcpy((char *)all, "stand-in");
    const size_t memory = (size_t)1 << 36, shared = 49152;
    const int of_block[] = {65536, 32}, threads[] = {1024, 1024, 1024, 64, 2147483647, 65535, 65535}, capability[] = {9, 0}, processors = 132;
    memcpy(all + 288, &memory, sizeof memory);
    memcpy(all + 296, &shared, sizeof shared);
    memcpy(all + 304, of_block, sizeof of_block);
    memcpy(all + 320, threads, sizeof threads);
    memcpy(all + 360, capability, sizeof capability);
    memcpy(all + 384, &processors, sizeof processors);
    return 0;
}
const char *cudaGetErrorString(int error) { return error ? "an error of a stand-in" : "no error"; }
const char *cudaGetErrorName(int error) { return cudaGetErrorString(error); }
int cudaPointerGetAttributes(void *attributes, const void *of) { return (void)of, memset(attributes, 0, 64), 0; }
int cudaFuncGetAttributes(void *attributes, const void *of) { return (void)of, memset(attributes, 0, 64), 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *of, int threads, size_t shared, unsigned flags) {
    return (void)of, (void)threads, (void)shared, (void)flags, *blocks = 1, 0;
}
void **__cudaRegisterFatBinary(void *binary) { static void *handle[8]; return (void)binary, handle; }

/* Runtime: streams, events, graphs */
int cudaStreamCreate(void **stream) { return make(stream); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return (void)flags, make(stream); }
int cudaStreamIsCapturing(void *stream, int *status) { return (void)stream, *status = 0, 0; }
int cudaStreamBeginCapture(void *stream, int mode) { return (void)mode, tell("capture %p\n", stream), 0; }
int cudaStreamEndCapture(void *stream, void **graph) { return tell("captured %p\n", stream), make(graph); }
int cudaGraphInstantiate(void **made, void *graph, unsigned long long flags) { return (void)graph, (void)flags, make(made); }
int cudaGraphLaunch(void *graph, void *stream) { return tell("replay %p %p\n", stream, graph), 0; }
int cudaEventCreate(void **event) { return make(event); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return (void)flags, make(event); }
int cudaEventElapsedTime(float *ms, void *from, void *to) { return (void)from, (void)to, *ms = 1.0f, 0; }

/* cuBLAS */
int cublasCreate_v2(void **handle) { return make(handle); }
int cublasGetMathMode(void *handle, int *mode) { return (void)handle, *mode = 0, 0; }
const char *cublasGetStatusString(int status) { return cudaGetErrorString(status); }
const char *cublasGetStatusName(int status) { return cudaGetErrorString(status); }
int cublasLtCreate(void **handle) { return make(handle); }
int cublasLtMatmulDescCreate(void **made, int computes, int scales) { return (void)computes, (void)scales, make(made); }
int cublasLtMatmulPreferenceCreate(void **made) { return make(made); }
int cublasLtMatrixLayoutCreate(void **made, int kind, uint64_t rows, uint64_t columns, int64_t stride) {
    return (void)kind, (void)rows, (void)columns, (void)stride, make(made);
}

/* The driver */
int cuInit(unsigned flags) { return (void)flags, 0; }
int cuDriverGetVersion(int *version) { return *version = VERSION, 0; }
int cuDeviceGet(int *device, int number) { return *device = number, 0; }
int cuDeviceGetName(char *name, int size, int device) { return (void)device, snprintf(name, (size_t)size, "stand-in"), 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return cudaDeviceGetAttribute(value, attribute, device); }
int cuGetExportTable(const void **table, const void *id) { return (void)id, *table = NULL, UNSUPPORTED; }  /* NVRTC asks */
int cuModuleLoadData(void **module, const void *code) { return tell("module %.3s\n", (const char *)code + 1), make(module); }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    return (void)module, (*function = strdup(name)) ? 0 : 2;
}
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **parameters, void **extra) {
    (void)by, (void)bz, (void)shared, (void)parameters, (void)extra;
    return tell("launch %p %s %u %u %u %u\n", stream, (char *)function, x, y, z, threads), 0;
}
