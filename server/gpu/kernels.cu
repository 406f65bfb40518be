// The three kernels that onnxruntime's CUDA provider lacks: attention over what one product gives, a product's bias with
// the residual stream and the norm of the sum, and a product's bias with GELU.
//
// Products are halves; sums, norms, scores and the residual stream are fp32, as export/cuda.py says. NVRTC compiles this
// file when an engine starts (kernels.py), for GPUs of compute capability 8.0 and later. The tests compile it for the
// CPU, with another definition of what is between the lines.
//
// Sources: Dao, FlashAttention-2, 2023 (the order of the work); PTX ISA, ldmatrix and mma.m16n8k16 (who holds what).

typedef unsigned short half;  // its bits
typedef unsigned int halves;  // two of them, the first in the lower bits

#ifdef __CUDACC__  // ------------------------------------------------------------------------------------------------

__device__ inline float2 unpack(halves pair) {
    float2 found;
    asm("{.reg .f16 first, second; mov.b32 {first, second}, %2; cvt.f32.f16 %0, first; cvt.f32.f16 %1, second;}"
        : "=f"(found.x), "=f"(found.y) : "r"(pair));
    return found;
}

__device__ inline halves pack(float first, float second) {
    halves pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// Approximately, and without numbers below 1e-38.
__device__ inline float power_of_2(float exponent) {
    float found;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(exponent));
    return found;
}

__device__ inline float reciprocal(float value) {
    float found;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(value));
    return found;
}

// Copy 16 bytes to shared memory in the background, or zeros.
__device__ inline void fetch(half *to, const half *from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(exists ? 16 : 0) : "memory");
}

__device__ inline void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait for all groups of copies but the last ones.
template <int LAST> __device__ inline void await_groups() { asm volatile("cp.async.wait_group %0;" :: "n"(LAST) : "memory"); }

// Load four 8x8 matrices of halves into a warp's registers. Lane 8 i + j names row j of matrix i.
__device__ inline void load_rows(halves (&found)[4], const half *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(found[0]), "=r"(found[1]), "=r"(found[2]), "=r"(found[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}

__device__ inline void load_columns(halves (&found)[4], const half *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(found[0]), "=r"(found[1]), "=r"(found[2]), "=r"(found[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)) : "memory");
}

// sum += left (16 x 16) right (16 x 8), by a warp, in fp32.
__device__ inline void multiply_add(float (&sum)[4], const halves (&left)[4], halves right0, halves right1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
                 " {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

#endif  // -----------------------------------------------------------------------------------------------------------

constexpr int LANES = 32, WARPS = 4;
constexpr int QUERIES = 16 * WARPS;  // of one block: 16 for each warp
constexpr int STEP = 64;             // keys that are in shared memory at a time; the next ones are on their way
constexpr float MASKED = -1e30f;     // finite: weights of a query whose keys are all masked stay numbers
constexpr float LOG2_E = 1.4426950408889634f;

__device__ inline float sum_of(float value, int lanes) {
    for (int other = lanes / 2; other > 0; other /= 2) value += __shfl_xor_sync(0xffffffff, value, other);
    return value;
}

__device__ inline float largest_of(float value, int lanes) {
    for (int other = lanes / 2; other > 0; other /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, other));
    return value;
}

__device__ inline void read(float (&found)[8], const half *from) {
    const uint4 packed = *(const uint4 *)from;
    const halves pairs[4] = {packed.x, packed.y, packed.z, packed.w};
    for (int of = 0; of < 4; of++) {
        const float2 two = unpack(pairs[of]);
        found[2 * of] = two.x, found[2 * of + 1] = two.y;
    }
}

__device__ inline void read(float (&found)[8], const float *from) {
    const float4 first = ((const float4 *)from)[0], second = ((const float4 *)from)[1];
    found[0] = first.x, found[1] = first.y, found[2] = first.z, found[3] = first.w;
    found[4] = second.x, found[5] = second.y, found[6] = second.z, found[7] = second.w;
}

__device__ inline void write(half *to, const float (&value)[8]) {
    *(uint4 *)to = {pack(value[0], value[1]), pack(value[2], value[3]), pack(value[4], value[5]), pack(value[6], value[7])};
}

__device__ inline void write(float *to, const float (&value)[8]) {
    ((float4 *)to)[0] = {value[0], value[1], value[2], value[3]};
    ((float4 *)to)[1] = {value[4], value[5], value[6], value[7]};
}

// products (B, tokens, 3, heads, SIZE), bias of the queries (heads, SIZE), mask (B, tokens) -> attended (B, queries,
// heads, SIZE), of the first queries. A block is (queries / QUERIES, head, b).
template <int SIZE>
__device__ inline void attend(const half *products, const float *bias, const unsigned char *mask, half *attended,
                              int tokens, int queries) {
    // 8 more, so that rows of a matrix lie in different banks.
    __shared__ __align__(16) half keys[2][STEP][SIZE + 8], values[2][STEP][SIZE + 8];
    __shared__ float bars[2][STEP];  // 0, or MASKED

    const int hidden = gridDim.y * SIZE, head = blockIdx.y * SIZE, stride = 3 * hidden;
    const half *own = products + (size_t)blockIdx.z * tokens * stride + head;
    const int lane = threadIdx.x % LANES, first = blockIdx.x * QUERIES + threadIdx.x / LANES * 16;
    const bool idle = first >= queries;
    const int row = first + lane / 4, pair = lane % 4 * 2;  // a lane has two columns of this row, and of that 8 below

    auto fetch_step = [&](int step) {
        for (int at = threadIdx.x; at < STEP * SIZE / 8; at += LANES * WARPS) {
            const int near = at / (SIZE / 8), column = at % (SIZE / 8) * 8, key = step * STEP + near;
            const half *from = own + (size_t)min(key, tokens - 1) * stride + hidden + column;
            fetch(&keys[step % 2][near][column], from, key < tokens);
            fetch(&values[step % 2][near][column], from + hidden, key < tokens);
        }
        if (threadIdx.x < STEP) {
            const int key = step * STEP + threadIdx.x;
            bars[step % 2][threadIdx.x] = key < tokens && mask[blockIdx.z * tokens + key] ? 0.0f : MASKED;
        }
        end_group();
    };
    fetch_step(0);

    halves query[SIZE / 16][4] = {};
    for (int part = 0; part < SIZE / 16; part++) {
        for (int of = 0; of < 4; of++) {
            const int column = part * 16 + of / 2 * 8 + pair, token = row + of % 2 * 8;
            if (token >= queries) continue;
            const float2 value = unpack(*(const halves *)(own + (size_t)token * stride + column));
            query[part][of] = pack(value.x + bias[head + column], value.y + bias[head + column + 1]);
        }
    }

    float best[2] = {MASKED, MASKED}, total[2] = {}, sum[SIZE / 8][4] = {};
    const int steps = (tokens + STEP - 1) / STEP;
    for (int step = 0; step < steps; step++) {
        if (step + 1 < steps) {
            fetch_step(step + 1);
            await_groups<1>();
        } else {
            await_groups<0>();
        }
        __syncthreads();
        if (!idle) {
            const int left = tokens - step * STEP, now = step % 2;
            float score[STEP / 8][4];
#pragma unroll
            for (int at = 0; at < STEP / 16; at++) {
                for (int of = 0; of < 8; of++) {
                    score[2 * at + of / 4][of % 4] = bars[now][at * 16 + of / 4 * 8 + pair + of % 2];
                }
                if (at * 16 >= left) continue;
                for (int part = 0; part < SIZE / 16; part++) {
                    halves key[4];
                    load_rows(key, &keys[now][at * 16 + lane / 16 * 8 + lane % 8][part * 16 + lane / 8 % 2 * 8]);
                    multiply_add(score[2 * at], query[part], key[0], key[1]);
                    multiply_add(score[2 * at + 1], query[part], key[2], key[3]);
                }
            }
#pragma unroll
            for (int below = 0; below < 2; below++) {
                float above = best[below];
                for (auto &each : score) above = fmaxf(above, fmaxf(each[2 * below], each[2 * below + 1]));
                above = largest_of(above, 4);
                const float shrunk = power_of_2((best[below] - above) * LOG2_E);
                best[below] = above;
                total[below] *= shrunk;
                for (auto &each : sum) each[2 * below] *= shrunk, each[2 * below + 1] *= shrunk;
                for (auto &each : score) {
                    for (int of = 2 * below; of < 2 * below + 2; of++) {
                        each[of] = power_of_2((each[of] - above) * LOG2_E);
                        total[below] += each[of];
                    }
                }
            }
#pragma unroll
            for (int at = 0; at < STEP / 16; at++) {
                if (at * 16 >= left) continue;
                const float(&here)[4] = score[2 * at], (&next)[4] = score[2 * at + 1];
                const halves weight[4] = {pack(here[0], here[1]), pack(here[2], here[3]), pack(next[0], next[1]),
                                          pack(next[2], next[3])};
                for (int part = 0; part < SIZE / 16; part++) {
                    halves value[4];
                    load_columns(value, &values[now][at * 16 + lane % 16][part * 16 + lane / 16 * 8]);
                    multiply_add(sum[2 * part], weight, value[0], value[1]);
                    multiply_add(sum[2 * part + 1], weight, value[2], value[3]);
                }
            }
        }
        __syncthreads();
    }

    for (int below = 0; below < 2; below++) {
        const float share = reciprocal(sum_of(total[below], 4));
        const int token = row + 8 * below;
        if (token >= queries) continue;
        half *to = attended + ((size_t)blockIdx.z * queries + token) * hidden + head + pair;
        for (int of = 0; of < SIZE / 8; of++) {
            *(halves *)(to + of * 8) = pack(sum[of][2 * below] * share, sum[of][2 * below + 1] * share);
        }
    }
}

// Four blocks at a time cost 36 bytes of registers in memory, and hide more of the waiting: assumed, not measured.
extern "C" __global__ void __launch_bounds__(LANES *WARPS, 4)
    attend_32(const half *products, const float *bias, const unsigned char *mask, half *attended, int tokens, int queries) {
    attend<32>(products, bias, mask, attended, tokens, queries);
}

extern "C" __global__ void __launch_bounds__(LANES *WARPS, 4)
    attend_64(const half *products, const float *bias, const unsigned char *mask, half *attended, int tokens, int queries) {
    attend<64>(products, bias, mask, attended, tokens, queries);
}

// The sum of a value of every thread of a block, for each of them.
__device__ inline float sum_of_block(float value, float (&shared)[WARPS]) {
    value = sum_of(value, LANES);
    if (threadIdx.x % LANES == 0) shared[threadIdx.x / LANES] = value;
    __syncthreads();
    float total = 0.0f;
    for (float each : shared) total += each;
    return total;
}

// added = product + bias + stream, and its norm. A block has a row, and a thread 8 values of it: `hidden` is a multiple of
// 8, and at most 1024.
extern "C" __global__ void __launch_bounds__(LANES *WARPS)
    add_norm(const half *product, const float *stream, const float *bias, float *added, half *normed, int hidden, float epsilon) {
    __shared__ float sums[WARPS], squares[WARPS];
    const int at = threadIdx.x * 8;
    const size_t own = (size_t)blockIdx.x * hidden + at;
    const bool idle = at >= hidden;
    float value[8] = {}, now[8] = {}, shift[8] = {}, total = 0.0f, spread = 0.0f;
    if (!idle) {
        read(value, product + own);
        read(now, stream + own);
        read(shift, bias + at);
    }
    for (int of = 0; of < 8; of++) {
        value[of] += shift[of] + now[of];
        total += value[of];
    }
    if (!idle) write(added + own, value);
    const float mean = sum_of_block(total, sums) / hidden;
    for (int of = 0; of < 8; of++) {
        value[of] -= mean;
        if (!idle) spread += value[of] * value[of];
    }
    const float scale = rsqrtf(sum_of_block(spread, squares) / hidden + epsilon);
    for (float &each : value) each *= scale;
    if (!idle) write(normed + own, value);
}

// The normal distribution's share below a value, to 4e-7.
// Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.17, which is 7.1.26 for the normal distribution.
__device__ inline float share_below(float value) {
    const float t = reciprocal(1.0f + 0.23164189f * fabsf(value));
    const float series = (((0.53070271f * t - 0.72657601f) * t + 0.71070687f) * t - 0.14224837f) * t + 0.12741480f;
    const float beyond = t * series * power_of_2(value * value * (-0.5f * LOG2_E));
    return value < 0 ? beyond : 1.0f - beyond;
}

// A thread has 8 values of a row of `width`, which is a multiple of 8.
extern "C" __global__ void __launch_bounds__(256)
    bias_gelu(const half *product, const float *bias, half *found, int eighths, int width) {
    const int at = blockIdx.x * 256 + threadIdx.x;
    if (at >= eighths) return;
    float value[8], own[8];
    read(value, product + (size_t)at * 8);
    read(own, bias + at % (width / 8) * 8);
    for (int of = 0; of < 8; of++) {
        value[of] += own[of];
        value[of] *= share_below(value[of]);
    }
    write(found + (size_t)at * 8, value);
}
