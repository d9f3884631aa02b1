// The instructions of src/cuda/tensor_core.cuh: lanes show one another their registers, and each
// computes its own sums. Tiles in shared memory must be aligned as ldmatrix wants them.
#pragma once

#include "cuda_bf16.h"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace emulation {

inline float half_of(std::uint32_t word, unsigned half) {
    return __int_as_float(half ? word & 0xffff0000u : word << 16);
}

inline void demand_alignment(const void *tile, unsigned stride) {
    if (reinterpret_cast<std::uintptr_t>(tile) % 16 != 0 || stride * 2 % 16 != 0) {
        std::fprintf(stderr, "a tile at %p with a stride of %u elements is not aligned\n", tile,
                     stride);
        std::exit(1);
    }
}

inline unsigned pair_at(const __nv_bfloat16 &first, const __nv_bfloat16 &second) {
    return first.bits | unsigned(second.bits) << 16;
}

// Copies that the running thread has started; nothing is copied before the thread waits for it.
std::vector<std::function<void()>> &copies();

} // namespace emulation

inline void start_copy(void *to, const void *from, bool is_there) {
    emulation::demand_alignment(to, 8);
    emulation::demand_alignment(from, 8);
    emulation::copies().push_back([=] {
        if (is_there) {
            std::memcpy(to, from, 16);
        } else {
            std::memset(to, 0, 16);
        }
    });
}

inline void wait_for_copies() {
    for (const auto &copy : emulation::copies()) {
        copy();
    }
    emulation::copies().clear();
}

inline float power_of_two(float x) { return std::exp2(x); }

inline void multiply_add(float *sums, const unsigned *left, const unsigned *right) {
    emulation::Words *lanes = emulation::exchange();
    const unsigned lane = emulation::lane();
    std::memcpy(lanes[lane].words, left, 16);
    std::memcpy(lanes[lane].words + 4, right, 8);
    emulation::wait_for(emulation::Barrier::Exchange);
    float results[4];
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        results[i] = sums[i];
        for (unsigned k = 0; k < 16; k++) {
            // Who holds left[row, k] and right[k, column], in which register and half.
            const unsigned of_left = row % 8 * 4 + k % 8 / 2, of_right = column * 4 + k % 8 / 2;
            const std::uint32_t a = lanes[of_left].words[row / 8 + k / 8 * 2];
            const std::uint32_t b = lanes[of_right].words[4 + k / 8];
            results[i] += emulation::half_of(a, k % 2) * emulation::half_of(b, k % 2);
        }
    }
    emulation::wait_for(emulation::Barrier::ExchangeDone);
    std::memcpy(sums, results, 16);
}

inline void load_transposed(unsigned *right, const __nv_bfloat16 *tile, unsigned stride) {
    emulation::demand_alignment(tile, stride);
    const unsigned lane = emulation::lane();
    for (unsigned i = 0; i < 4; i++) {
        const __nv_bfloat16 *row = tile + (lane / 4 + i / 2 * 8) * stride;
        const unsigned column = lane % 4 * 2 + i % 2 * 8;
        right[i] = emulation::pair_at(row[column], row[column + 1]);
    }
}

inline void load_right(unsigned *right, const __nv_bfloat16 *tile, unsigned stride) {
    emulation::demand_alignment(tile, stride);
    const unsigned lane = emulation::lane();
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane % 4 * 2 + i % 2 * 8, column = lane / 4 + i / 2 * 8;
        right[i] = emulation::pair_at(tile[row * stride + column], tile[(row + 1) * stride + column]);
    }
}
