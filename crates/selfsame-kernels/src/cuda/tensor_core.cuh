// Tensor cores by their instructions: products of 16 x 16 by 16 x 8 bf16, summed in f32, with all
// factors and sums in registers.
//
// A lane's place, with group = lane / 4 and pair = 2 · (lane % 4), by the PTX manual's section on
// mma.m16n8k16. A register holds two neighbours:
//   left [16, 16]  rows group, group + 8, group, group + 8; columns pair, pair, pair + 8, pair + 8
//   right [16, 8]  rows pair and pair + 1, then pair + 8 and pair + 9; column group
//   sums [16, 8]   f32: row group, columns pair and pair + 1; then row group + 8
#pragma once

#include "device.cuh"

#define GROUP (threadIdx.x % WARP / 4)
#define PAIR (threadIdx.x % 4 * 2)

__device__ inline unsigned pack(float first, float second) {
    return bits_of(from_f32<bf16>(first)) | bits_of(from_f32<bf16>(second)) << 16;
}

#ifdef __CUDACC__

// sums += left · right
__device__ inline void multiply_add(float *sums, const unsigned *left, const unsigned *right) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]),
                   "r"(right[1]));
}

// Two right factors, side by side, out of a tile of 16 x 16 in shared memory whose rows are their
// columns.
__device__ inline void load_transposed(unsigned *right, const bf16 *tile, unsigned stride) {
    const unsigned lane = threadIdx.x % WARP, matrix = lane / 8;
    const bf16 *row = tile + (lane % 8 + matrix / 2 * 8) * stride + matrix % 2 * 8;
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(right[0]), "=r"(right[1]), "=r"(right[2]), "=r"(right[3])
                 : "r"(address));
}

// Two right factors, side by side, out of a tile of 16 x 16 in shared memory.
__device__ inline void load_right(unsigned *right, const bf16 *tile, unsigned stride) {
    const unsigned lane = threadIdx.x % WARP, matrix = lane / 8;
    const bf16 *row = tile + (lane % 8 + matrix % 2 * 8) * stride + matrix / 2 * 8;
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(right[0]), "=r"(right[1]), "=r"(right[2]), "=r"(right[3])
                 : "r"(address));
}

// Starts to copy 16 bytes into shared memory, or zeros if there is nothing to copy.
__device__ inline void start_copy(void *to, const void *from, bool is_there) {
    const unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(is_there ? 16 : 0)
                 : "memory");
}

// Waits for all that this thread has started; other threads see it behind a barrier.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 2 to the power of x, within 2 units in the last place.
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
