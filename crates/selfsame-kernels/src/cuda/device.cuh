// What all kernels share: element types, sums over warps and blocks, where a thread stands.
//
// The sources use nothing of the standard library, so that nvcc, NVRTC and the emulation of
// tests/cuda_emulation all take them.
#pragma once

#include <cuda_bf16.h>

typedef __nv_bfloat16 bf16;

// Threads of a warp.
#define WARP 32u

// Memory of a block whose size the launch decides. Aligned as tensor cores want it.
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

// Loops over registers, which have no addresses.
#ifndef UNROLL
#define UNROLL _Pragma("unroll")
#endif

__device__ inline float to_f32(float x) { return x; }
__device__ inline float to_f32(bf16 x) { return __bfloat162float(x); }

template <class T> __device__ inline T from_f32(float x);
template <> __device__ inline float from_f32<float>(float x) { return x; }
template <> __device__ inline bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }

// Two neighbours at once, from an address of as many bytes' alignment.
__device__ inline float2 load_pair(const float *from) { return *(const float2 *)from; }
__device__ inline float2 load_pair(const bf16 *from) {
    const unsigned bits = *(const unsigned *)from;
    float2 pair;
    pair.x = __int_as_float(bits << 16);
    pair.y = __int_as_float(bits & 0xffff0000u);
    return pair;
}

__device__ inline unsigned bits_of(bf16 x) { return __bfloat16_as_ushort(x); }

__device__ inline void store_pair(float *to, float2 pair) { *(float2 *)to = pair; }
__device__ inline void store_pair(bf16 *to, float2 pair) {
    *(unsigned *)to = bits_of(from_f32<bf16>(pair.x)) | bits_of(from_f32<bf16>(pair.y)) << 16;
}

__device__ inline float negative_infinity() { return __int_as_float(0xff800000); }

struct Sum {
    static __device__ float none() { return 0.0f; }
    static __device__ float of(float a, float b) { return a + b; }
};

// A NaN does not win; it comes back in whatever is computed from the maximum.
struct Max {
    static __device__ float none() { return negative_infinity(); }
    static __device__ float of(float a, float b) { return a > b ? a : b; }
};

// The same value in every lane.
template <class Op> __device__ inline float over_warp(float x) {
    for (unsigned step = WARP / 2; step > 0; step /= 2) {
        x = Op::of(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    return x;
}

// The same value in every thread of a one-dimensional block of whole warps.
template <class Op> __device__ inline float over_block(float x) {
    __shared__ float of_warps[WARP];
    const unsigned lane = threadIdx.x % WARP;
    x = over_warp<Op>(x);
    // Readers of the last reduction are done.
    __syncthreads();
    if (lane == 0) {
        of_warps[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    return over_warp<Op>(lane < blockDim.x / WARP ? of_warps[lane] : Op::none());
}

// Rows of blocks that add up columns: 32 columns wide.
#define COLUMN_ROWS 8u

// Adds what the rows of a block of 32 x COLUMN_ROWS threads hold, column by column and in the order
// of the rows. The sum is in the threads of row 0.
__device__ inline float over_rows(float x, float (*rows)[WARP + 1]) {
    rows[threadIdx.y][threadIdx.x] = x;
    __syncthreads();
    float sum = 0.0f;
    if (threadIdx.y == 0) {
        for (unsigned row = 0; row < COLUMN_ROWS; row++) {
            sum += rows[row][threadIdx.x];
        }
    }
    return sum;
}

__device__ inline unsigned smaller(unsigned a, unsigned b) { return a < b ? a : b; }
