// CUDA's execution model on one CPU thread, as far as src/cuda uses it.
//
// Every thread of a block is a fiber that runs until it waits at a barrier, and a warp goes on
// until all of it waits for the block. Nothing else orders fibers: a missing barrier shows as a
// difference between running them forwards and backwards, which the runner tests. Memory that a block shares
// begins as NaN. Barriers that not all threads reach end the program with an error.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __shared__ static
#define __align__(bytes) alignas(bytes)

namespace emulation {

struct Position {
    unsigned x, y, z;
};

extern Position thread, block, block_size, grid_size;

// What a thread says when it comes to a barrier: all must come to the same one.
enum class Barrier { Block, Warp, Exchange, ExchangeDone };

void wait_for(Barrier barrier);
unsigned char *shared();
// Places that all lanes of the running thread's warp see, eight words for each lane.
struct Words {
    std::uint32_t words[8];
};
Words *exchange();
unsigned lane();

} // namespace emulation

#define threadIdx emulation::thread
#define blockIdx emulation::block
#define blockDim emulation::block_size
#define gridDim emulation::grid_size
#define UNROLL
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(name) unsigned char *name = emulation::shared()

struct alignas(8) float2 {
    float x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline void __syncthreads() { emulation::wait_for(emulation::Barrier::Block); }
inline void __syncwarp() { emulation::wait_for(emulation::Barrier::Warp); }

inline float __shfl_xor_sync(unsigned, float x, unsigned mask) {
    std::memcpy(emulation::exchange()[emulation::lane()].words, &x, 4);
    emulation::wait_for(emulation::Barrier::Exchange);
    float result;
    std::memcpy(&result, emulation::exchange()[emulation::lane() ^ mask].words, 4);
    emulation::wait_for(emulation::Barrier::ExchangeDone);
    return result;
}

inline float __int_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline int __float_as_int(float x) {
    int bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
