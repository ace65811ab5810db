/* What the kernels stand on: number formats, threads, reductions.
 *
 * The kernels are C. nvcc compiles them for a card, where this header maps to
 * CUDA's words; any C compiler compiles them for tests, where it maps to
 * emulation.h. Two settings are given on the command line:
 *
 *   NUMBER_BF16, NUMBER_F16 or NUMBER_F32   how numbers are stored
 *   PACK=4 or PACK=1                        numbers that a thread moves at once
 *
 * With PACK=4 every row length is a multiple of four and every row starts at a
 * multiple of four numbers; who launches sees to that.
 *
 * Places in memory are counted in 64 bits, columns of a row in 32: who launches
 * keeps rows so short that a loop over columns can step past their end. */
#ifndef PLATFORM_H
#define PLATFORM_H

/* Most threads of a block: so many must find registers. mod.rs says the same. */
#define MOST_THREADS 512

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define INSIDE static __device__ __forceinline__
#define KERNEL(name, arguments)                                                          \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS) name(const arguments call)
#define BLOCK ((long long)blockIdx.x)
#define THREAD ((int)threadIdx.x)
#define THREADS ((int)blockDim.x)
#define BARRIER() __syncthreads()
/* The emulation holds every place that is read or written against the tensors. */
#define READS(pointer)
#define WRITES(pointer)

extern __shared__ float shared[];

#if defined(NUMBER_BF16)
typedef __nv_bfloat16 number;
INSIDE float wide(number x) { return __bfloat162float(x); }
INSIDE number narrow(float x) { return __float2bfloat16_rn(x); }
#elif defined(NUMBER_F16)
typedef __half number;
INSIDE float wide(number x) { return __half2float(x); }
INSIDE number narrow(float x) { return __float2half_rn(x); }
#else
typedef float number;
INSIDE float wide(number x) { return x; }
INSIDE number narrow(float x) { return x; }
#endif

/* The value of the lane whose number differs in the bits of `mask`. */
INSIDE float of_lane(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

#else
#include "emulation.h"
#endif

#define WARP 32

/* Numbers that are loaded and stored together. */
typedef struct
#ifdef __CUDACC__
    __align__(PACK * sizeof(number))
#endif
{
    number at[PACK];
} pack;

INSIDE pack load(const number *from) {
    READS((const pack *)from);
    return *(const pack *)from;
}

INSIDE void store(number *to, pack numbers) {
    WRITES((pack *)to);
    *(pack *)to = numbers;
}

/* One number, and one that is stored in 32 bits. */
INSIDE float load_one(const number *from) {
    READS(from);
    return wide(*from);
}

INSIDE void store_one(number *to, float x) {
    WRITES(to);
    *to = narrow(x);
}

INSIDE float load_float(const float *from) {
    READS(from);
    return *from;
}

/* `x` as it is after being stored. */
INSIDE float rounded(float x) { return wide(narrow(x)); }

INSIDE float warp_sum(float value) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += of_lane(value, mask);
    return value;
}

INSIDE float warp_maximum(float value) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) value = fmaxf(value, of_lane(value, mask));
    return value;
}

/* The sum over a block of whole warps, for all its threads. Uses one float of
 * shared memory for each warp. */
INSIDE float block_sum(float value) {
    value = warp_sum(value);
    BARRIER(); /* whoever still reads the sums of an earlier call */
    if (THREAD % WARP == 0) shared[THREAD / WARP] = value;
    BARRIER();
    float sum = 0.0f;
    for (int warp = 0; warp < THREADS / WARP; ++warp) sum += shared[warp];
    return sum;
}

/* Likewise, the largest; a NaN is passed over, as fmaxf does. */
INSIDE float block_maximum(float value) {
    value = warp_maximum(value);
    BARRIER();
    if (THREAD % WARP == 0) shared[THREAD / WARP] = value;
    BARRIER();
    float largest = shared[0];
    for (int warp = 1; warp < THREADS / WARP; ++warp) largest = fmaxf(largest, shared[warp]);
    return largest;
}

/* A vector for each entry of a batch; `stride` numbers lie between two of them,
 * none where the batch shares one. */
typedef struct {
    const number *first;
    long long stride;
} vectors;

INSIDE const number *vector_of(vectors v, long long entry) { return v.first + entry * v.stride; }

#endif
