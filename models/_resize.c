/* Resize a picture by integers and cut it into patches, in one pass over its rows: Pillow's arithmetic, vectorised.

   A weight has 22 fractional bits. Two 16-bit halves of it multiply pairs of pixels (pmaddwd), and their sums, put together,
   are the sum that Pillow's 32-bit arithmetic has: to the last bit, as integers have no order of summation.
   What the weights are and which axis comes first is said in resize.py. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PLAIN)
#include <immintrin.h>
#define HAS_AVX2 1
#endif

enum { CHANNELS = 4, BITS = 22, HALF = 15, ROWS = 4, AT_ONCE = 8 };  /* rows go across, pixels are cut */

/* Of each output, where its pixels start and, for each pair of them, two low and two high halves of weights. */
typedef struct {
    int in_px, out_px, taps;
    const int32_t *first;   /* (out_px,) */
    const int16_t *halves;  /* (out_px, taps / 2, 2, 2) */
} Axis;

typedef void (*Across)(const uint8_t *const rows[ROWS], uint8_t *out, size_t stride, const Axis *axis);
typedef void (*Down)(const uint8_t *const *rows, size_t at, const int16_t *halves, int taps, uint8_t *out, int width);

typedef void (*Cut)(const uint8_t *line, int y, int columns, int patch, uint8_t *patches);

static inline uint8_t rounded(int32_t sum) {
    sum >>= BITS;
    return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

static inline int32_t weight_of(const int16_t *halves, int tap) {
    const int16_t *pair = halves + 4 * (tap / 2) + tap % 2;
    return pair[2] * (1 << HALF) + pair[0];
}

static void across_plain(const uint8_t *const rows[ROWS], uint8_t *out, size_t stride, const Axis *axis) {
    for (int x = 0; x < axis->out_px; x++) {
        const int16_t *halves = axis->halves + (size_t)x * axis->taps * 2;
        for (int row = 0; row < ROWS; row++) {
            const uint8_t *from = rows[row] + (size_t)axis->first[x] * CHANNELS;
            int32_t sums[CHANNELS];
            for (int channel = 0; channel < CHANNELS; channel++) sums[channel] = 1 << (BITS - 1);
            for (int tap = 0; tap < axis->taps; tap++) {
                const int32_t weight = weight_of(halves, tap);
                for (int channel = 0; channel < CHANNELS; channel++) sums[channel] += *from++ * weight;
            }
            uint8_t *to = out + row * stride + (size_t)x * CHANNELS;
            for (int channel = 0; channel < CHANNELS; channel++) to[channel] = rounded(sums[channel]);
        }
    }
}

static void down_plain(const uint8_t *const *rows, size_t at, const int16_t *halves, int taps, uint8_t *out, int width) {
    enum { SPAN = 64 };
    const int bytes = width * CHANNELS;
    for (int start = 0; start < bytes; start += SPAN) {
        const int count = bytes - start < SPAN ? bytes - start : SPAN;
        int32_t sums[SPAN];
        for (int i = 0; i < count; i++) sums[i] = 1 << (BITS - 1);
        for (int tap = 0; tap < taps; tap++) {
            const int32_t weight = weight_of(halves, tap);
            const uint8_t *row = rows[tap] + at + start;
            for (int i = 0; i < count; i++) sums[i] += row[i] * weight;
        }
        for (int i = 0; i < count; i++) out[start + i] = rounded(sums[i]);
    }
}

#ifdef HAS_AVX2
#define AVX2 __attribute__((target("avx2")))

/* Two neighbouring pixels of each of two rows: channels side by side, 16 bits each. */
AVX2 static inline __m256i two_pixels_of_two_rows(const uint8_t *one, const uint8_t *other) {
    const __m256i pairs = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1));
    int64_t low, high;
    memcpy(&low, one, sizeof low);
    memcpy(&high, other, sizeof high);
    return _mm256_shuffle_epi8(_mm256_blend_epi32(_mm256_set1_epi64x(low), _mm256_set1_epi64x(high), 0xF0), pairs);
}

AVX2 static inline __m256i weights(const int16_t *pair) {
    int32_t both;
    memcpy(&both, pair, sizeof both);
    return _mm256_set1_epi32(both);
}

AVX2 static inline __m256i whole(__m256i low, __m256i high) {
    return _mm256_srai_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(high, HALF)), BITS);
}

/* Pixel x of each of four rows, 16 bits a channel: of rows 0 and 2, then of 1 and 3. */
AVX2 static inline __m256i pixel_across(const uint8_t *const rows[ROWS], const Axis *axis, int x) {
    const __m256i half = _mm256_set1_epi32(1 << (BITS - 1));
    const int taps = axis->taps;
    const int16_t *halves = axis->halves + (size_t)x * taps * 2;
    const size_t from = (size_t)axis->first[x] * CHANNELS;
    __m256i low01 = half, high01 = _mm256_setzero_si256(), low23 = half, high23 = high01;
#pragma GCC unroll 4  /* few taps as they are, what surrounds them takes as long */
    for (int tap = 0; tap < taps; tap += 2) {
        const __m256i low = weights(halves + 2 * tap), high = weights(halves + 2 * tap + 2);
        const size_t at = from + (size_t)tap * CHANNELS;
        const __m256i pixels01 = two_pixels_of_two_rows(rows[0] + at, rows[1] + at);
        const __m256i pixels23 = two_pixels_of_two_rows(rows[2] + at, rows[3] + at);
        low01 = _mm256_add_epi32(low01, _mm256_madd_epi16(pixels01, low));
        high01 = _mm256_add_epi32(high01, _mm256_madd_epi16(pixels01, high));
        low23 = _mm256_add_epi32(low23, _mm256_madd_epi16(pixels23, low));
        high23 = _mm256_add_epi32(high23, _mm256_madd_epi16(pixels23, high));
    }
    return _mm256_packs_epi32(whole(low01, high01), whole(low23, high23));
}

AVX2 static void across_avx2(const uint8_t *const rows[ROWS], uint8_t *out, size_t stride, const Axis *axis) {
    for (int x = 0; x < axis->out_px; x += 2, out += 2 * CHANNELS) {  /* patches have even sides */
        const __m256i two = _mm256_packus_epi16(pixel_across(rows, axis, x), pixel_across(rows, axis, x + 1));
        const __m256i by_row = _mm256_shuffle_epi32(two, _MM_SHUFFLE(3, 1, 2, 0));
        const __m128d even = _mm_castsi128_pd(_mm256_castsi256_si128(by_row));
        const __m128d odd = _mm_castsi128_pd(_mm256_extracti128_si256(by_row, 1));
        _mm_storel_pd((double *)out, even);
        _mm_storel_pd((double *)(out + stride), odd);
        _mm_storeh_pd((double *)(out + 2 * stride), even);
        _mm_storeh_pd((double *)(out + 3 * stride), odd);
    }
}

AVX2 static void down_avx2(const uint8_t *const *rows, size_t at, const int16_t *halves, int taps, uint8_t *out, int width) {
    const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(1 << (BITS - 1));
    const int bytes = width * CHANNELS, step = sizeof(__m256i);
    int start = 0;
    for (; start + step <= bytes; start += step) {
        __m256i low[4] = {half, half, half, half}, high[4] = {zero, zero, zero, zero};
#pragma GCC unroll 4
        for (int tap = 0; tap < taps; tap += 2) {
            const __m256i low_weights = weights(halves + 2 * tap), high_weights = weights(halves + 2 * tap + 2);
            const __m256i one = _mm256_loadu_si256((const __m256i *)(rows[tap] + at + start));
            const __m256i other = _mm256_loadu_si256((const __m256i *)(rows[tap + 1] + at + start));
            const __m256i first = _mm256_unpacklo_epi8(one, other), second = _mm256_unpackhi_epi8(one, other);
            const __m256i pixels[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero),
                                       _mm256_unpacklo_epi8(second, zero), _mm256_unpackhi_epi8(second, zero)};
            for (int i = 0; i < 4; i++) {
                low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(pixels[i], low_weights));
                high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(pixels[i], high_weights));
            }
        }
        const __m256i words[2] = {_mm256_packs_epi32(whole(low[0], high[0]), whole(low[1], high[1])),
                                  _mm256_packs_epi32(whole(low[2], high[2]), whole(low[3], high[3]))};
        _mm256_storeu_si256((__m256i *)(out + start), _mm256_packus_epi16(words[0], words[1]));
    }
    down_plain(rows, at + start, halves, taps, out + start, width - start / CHANNELS);
}
#endif

static uint8_t *row_of(int y, int columns, int patch, uint8_t *patches) {
    return patches + ((size_t)(y / patch) * columns * patch + y % patch) * patch * 3;
}

static void cut_plain(const uint8_t *line, int y, int columns, int patch, uint8_t *patches) {
    uint8_t *to = row_of(y, columns, patch, patches);
    for (int column = 0; column < columns; column++, to += (size_t)patch * patch * 3) {
        for (int x = 0; x < patch; x++, line += CHANNELS) {
            to[3 * x] = line[0];
            to[3 * x + 1] = line[1];
            to[3 * x + 2] = line[2];
        }
    }
}

#ifdef HAS_AVX2
AVX2 static void cut_avx2(const uint8_t *line, int y, int columns, int patch, uint8_t *patches) {
    const __m256i rgb = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m256i together = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7);
    uint8_t *to = row_of(y, columns, patch, patches);
    for (int column = 0; column < columns; column++, to += (size_t)patch * patch * 3) {
        for (int x = 0; x < patch; x += AT_ONCE, line += AT_ONCE * CHANNELS) {
            const __m256i pixels = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)line), rgb);
            const __m256i packed = _mm256_permutevar8x32_epi32(pixels, together);
            _mm_storeu_si128((__m128i *)(to + 3 * x), _mm256_castsi256_si128(packed));
            _mm_storel_epi64((__m128i *)(to + 3 * x + 16), _mm256_extracti128_si256(packed, 1));
        }
    }
}
#endif

static int resize(const uint8_t *pixels, const Axis *wide, const Axis *high, int down_first, int patch, uint8_t *patches) {
    Across across = across_plain;
    Down down = down_plain;
    Cut cut = cut_plain;
#ifdef HAS_AVX2
    if (__builtin_cpu_supports("avx2")) {
        across = across_avx2;
        down = down_avx2;
        if (patch % AT_ONCE == 0) cut = cut_avx2;
    }
#endif
    const size_t in_stride = (size_t)wide->in_px * CHANNELS, out_stride = (size_t)wide->out_px * CHANNELS;
    const int columns = wide->out_px / patch, taps = high->taps;
    /* Few rows are kept, which stay in the cache: those that go across next, or a ring of those that have gone. */
    const int kept = down_first ? ROWS : (taps + 2 * ROWS - 2) / ROWS * ROWS;
    const size_t kept_stride = down_first ? in_stride : out_stride;
    const uint8_t **rows = malloc(taps * sizeof *rows);
    uint8_t *ring = malloc(kept * kept_stride + ROWS * out_stride), *lines = ring + kept * kept_stride;
    const int done = rows && ring;
    int narrowed = 0;  /* rows from the first that is read */
    for (int y = 0; done && y < high->out_px; y++) {
        const int16_t *halves = high->halves + (size_t)y * taps * 2;
        const int first = high->first[y];
        const uint8_t *four[ROWS];
        if (down_first) {
            for (int tap = 0; tap < taps; tap++) rows[tap] = pixels + (first + tap) * in_stride;
            down(rows, 0, halves, taps, ring + y % ROWS * in_stride, wide->in_px);
            if (y % ROWS < ROWS - 1) continue;
            for (int row = 0; row < ROWS; row++) four[row] = ring + row * in_stride;
            across(four, lines, out_stride, wide);
            for (int row = 0; row < ROWS; row++) cut(lines + row * out_stride, y - (ROWS - 1) + row, columns, patch, patches);
        } else {
            const int from = first - high->first[0];
            for (; narrowed < from + taps; narrowed += ROWS) {
                for (int row = 0; row < ROWS; row++) {
                    const int at = high->first[0] + narrowed + row;
                    four[row] = pixels + (at < high->in_px ? at : high->in_px - 1) * in_stride;
                }
                across(four, ring + narrowed % kept * out_stride, out_stride, wide);
            }
            for (int tap = 0; tap < taps; tap++) rows[tap] = ring + (from + tap) % kept * out_stride;
            down(rows, 0, halves, taps, lines, wide->out_px);
            cut(lines, y, columns, patch, patches);
        }
    }
    free(rows);
    free(ring);
    return done;
}

/* Source: the Arrow C data interface. */
struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children, *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

static int is_axis(const Axis *axis, const Py_buffer *first, const Py_buffer *halves) {
    if (axis->in_px <= 0 || axis->out_px <= 0 || axis->taps <= 0 || axis->taps % 2 || axis->taps > axis->in_px) return 0;
    if (first->len != (Py_ssize_t)axis->out_px * 4 || halves->len != (Py_ssize_t)axis->out_px * axis->taps * 4) return 0;
    for (int i = 0; i < axis->out_px; i++)
        if (axis->first[i] < 0 || axis->first[i] > axis->in_px - axis->taps) return 0;
    return 1;
}

static PyObject *py_resize(PyObject *module, PyObject *args) {
    PyObject *capsule, *result = NULL;
    int patch, down_first, done;
    Py_buffer patches, firsts[2], halves[2];
    Axis wide, high;
    if (!PyArg_ParseTuple(args, "O(iiiy*y*)(iiiy*y*)piw*", &capsule, &wide.in_px, &wide.out_px, &wide.taps, &firsts[0], &halves[0],
                          &high.in_px, &high.out_px, &high.taps, &firsts[1], &halves[1], &down_first, &patch, &patches))
        return NULL;
    wide.first = firsts[0].buf, wide.halves = halves[0].buf, high.first = firsts[1].buf, high.halves = halves[1].buf;
    const struct ArrowArray *array = PyCapsule_GetPointer(capsule, "arrow_array");
    if (!array) goto end;
    if (!is_axis(&wide, &firsts[0], &halves[0]) || !is_axis(&high, &firsts[1], &halves[1]) || patch <= 0 || patch % ROWS
        || wide.out_px % patch || high.out_px % patch || patches.len != (Py_ssize_t)wide.out_px * high.out_px * 3
        || array->n_children != 1 || array->offset || array->length != (int64_t)wide.in_px * high.in_px
        || array->children[0]->length != array->length * CHANNELS) {
        PyErr_SetString(PyExc_ValueError, "the picture, the axes and the patches do not fit each other");
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    done = resize(array->children[0]->buffers[1], &wide, &high, down_first, patch, patches.buf);
    Py_END_ALLOW_THREADS
    result = done ? Py_NewRef(Py_None) : PyErr_NoMemory();
end:
    for (int i = 0; i < 2; i++) {
        PyBuffer_Release(&firsts[i]);
        PyBuffer_Release(&halves[i]);
    }
    PyBuffer_Release(&patches);
    return result;
}

static PyMethodDef methods[] = {
    {"resize", py_resize, METH_VARARGS, "Resize an Arrow array of RGBX pixels into a buffer of patches."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_resize", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__resize(void) { return PyModule_Create(&definition); }
