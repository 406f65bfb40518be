// server/gpu/kernels.cu on a CPU: a block's threads are coroutines that take turns at barriers. It has the signature of
// cuLaunchKernel, for functions that `function` returns.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <string>
#include <ucontext.h>
#include <vector>

struct uint3 { unsigned x, y, z; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static uint3 threadIdx, blockIdx, gridDim;

#define __device__
#define __global__
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
using std::min;

static const int WARP = 32;
struct Copy {
    unsigned short *to;
    const unsigned short *from;
    bool exists;
};
struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool over;
    std::deque<std::vector<Copy>> groups;  // of copies that have begun; the last one is open
};
static std::vector<Thread> threads;
static ucontext_t scheduler;
static void (*body)(void **);
static void **arguments;
static unsigned passed_block, passed_warp[32];  // how often threads have come to a barrier

static void yield() { swapcontext(&threads[threadIdx.x].context, &scheduler); }

static void meet(unsigned &passed, unsigned size) {
    const unsigned until = passed / size * size + size;
    for (passed++; passed < until;) yield();
}
static void __syncthreads() { meet(passed_block, (unsigned)threads.size()); }
static void meet_warp() { meet(passed_warp[threadIdx.x / WARP], WARP); }

// What each lane of a warp gives to all others.
template <typename Value> static const Value *exchange(const Value &own) {
    static Value given[32][2][WARP];
    static unsigned turn[32][WARP];
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Value *now = given[warp][turn[warp][lane]++ % 2];
    now[lane] = own;
    meet_warp();
    return now;
}

static float __shfl_xor_sync(unsigned, float value, int other) { return exchange(value)[threadIdx.x % WARP ^ other]; }
static float power_of_2(float exponent) { return std::exp2(exponent); }
static float reciprocal(float value) { return 1 / value; }
static float rsqrtf(float value) { return 1 / std::sqrt(value); }

static float value_of(unsigned short bits) {
    _Float16 found;
    std::memcpy(&found, &bits, 2);
    return found;
}
static unsigned bits_of(float value) {
    const _Float16 rounded = value;
    unsigned short bits;
    std::memcpy(&bits, &rounded, 2);
    return bits;
}
static float2 unpack(unsigned pair) { return {value_of(pair & 0xffff), value_of(pair >> 16)}; }
static unsigned pack(float first, float second) { return bits_of(first) | bits_of(second) << 16; }

// A copy happens when its thread waits for it, and no sooner: a wait that is missing is seen.
static void fetch(unsigned short *to, const unsigned short *from, bool exists) {
    threads[threadIdx.x].groups.back().push_back({to, from, exists});
}
static void end_group() { threads[threadIdx.x].groups.emplace_back(); }
template <int LAST> static void await_groups() {
    for (auto &groups = threads[threadIdx.x].groups; groups.size() > LAST + 1; groups.pop_front()) {
        for (const Copy &one : groups.front()) one.exists ? std::memcpy(one.to, one.from, 16) : std::memset(one.to, 0, 16);
    }
}

struct Row { const unsigned short *at; };
static void load(unsigned (&found)[4], const unsigned short *row, bool transposed) {
    const Row *rows = exchange(Row{row});
    const int lane = threadIdx.x % WARP, one = lane / 4, two = lane % 4 * 2;
    for (int matrix = 0; matrix < 4; matrix++) {
        const Row *of = rows + matrix * 8;
        found[matrix] = transposed ? of[two].at[one] | (unsigned)of[two + 1].at[one] << 16
                                   : of[one].at[two] | (unsigned)of[one].at[two + 1] << 16;
    }
}
static void load_rows(unsigned (&found)[4], const unsigned short *row) { load(found, row, false); }
static void load_columns(unsigned (&found)[4], const unsigned short *row) { load(found, row, true); }

struct Operands { unsigned left[4], right[2]; };
static void multiply_add(float (&sum)[4], const unsigned (&left)[4], unsigned right0, unsigned right1) {
    Operands own{{left[0], left[1], left[2], left[3]}, {right0, right1}};
    const Operands *all = exchange(own);
    const int lane = threadIdx.x % WARP, row = lane / 4, column = lane % 4 * 2;
    for (int of = 0; of < 4; of++) {  // row and row + 8, column and column + 1
        for (int k = 0; k < 16; k += 2) {
            const float2 one = unpack(all[row * 4 + k % 8 / 2].left[of / 2 + k / 8 * 2]);
            const float2 other = unpack(all[(column + of % 2) * 4 + k % 8 / 2].right[k / 8]);
            sum[of] += one.x * other.x + one.y * other.y;
        }
    }
}

#include "kernels.cu"

template <typename Type> static Type &at(void **given, int index) { return *(Type *)given[index]; }
static void run_attend_32(void **given) {
    attend_32(at<const half *>(given, 0), at<const float *>(given, 1), at<const unsigned char *>(given, 2), at<half *>(given, 3),
              at<int>(given, 4), at<int>(given, 5));
}
static void run_attend_64(void **given) {
    attend_64(at<const half *>(given, 0), at<const float *>(given, 1), at<const unsigned char *>(given, 2), at<half *>(given, 3),
              at<int>(given, 4), at<int>(given, 5));
}
static void run_add_norm(void **given) {
    add_norm(at<const half *>(given, 0), at<const float *>(given, 1), at<const float *>(given, 2), at<float *>(given, 3),
             at<half *>(given, 4), at<int>(given, 5), at<float>(given, 6));
}
static void run_bias_gelu(void **given) {
    bias_gelu(at<const half *>(given, 0), at<const float *>(given, 1), at<half *>(given, 2), at<int>(given, 3), at<int>(given, 4));
}

static void enter() {
    body(arguments);
    threads[threadIdx.x].over = true;
}

extern "C" void *function(const char *name) {
    const std::string wanted = name;
    if (wanted == "attend_32") return (void *)run_attend_32;
    if (wanted == "attend_64") return (void *)run_attend_64;
    if (wanted == "add_norm") return (void *)run_add_norm;
    if (wanted == "bias_gelu") return (void *)run_bias_gelu;
    return nullptr;
}

extern "C" int launch(void *kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned, unsigned,
                      unsigned, void *, void **parameters, void **) {
    body = (void (*)(void **))kernel, arguments = parameters, gridDim = {grid_x, grid_y, grid_z};
    threads.resize(block_x);
    for (unsigned number = 0; number < grid_x * grid_y * grid_z; number++) {
        blockIdx = {number % grid_x, number / grid_x % grid_y, number / grid_x / grid_y};
        passed_block = 0, std::memset(passed_warp, 0, sizeof passed_warp);
        for (auto &thread : threads) {
            thread.stack.resize(1 << 16), thread.over = false, thread.groups.assign(1, {});
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = thread.stack.data(), thread.context.uc_stack.ss_size = thread.stack.size();
            thread.context.uc_link = &scheduler;
            makecontext(&thread.context, enter, 0);
        }
        for (bool going = true; going;) {
            going = false;
            for (threadIdx.x = 0; threadIdx.x < block_x; threadIdx.x++) {
                if (threads[threadIdx.x].over) continue;
                going = true;
                swapcontext(&scheduler, &threads[threadIdx.x].context);
            }
        }
    }
    return 0;
}
