// Tensor-core tiles: lane 0 holds a fragment and does the work of the warp.
//
// That takes away no need for a barrier: the other lanes neither wait nor hand over anything. The
// addresses and strides that the hardware demands are checked.
#pragma once

#include "cuda_bf16.h"

#include <cstdio>
#include <cstdlib>
#include <type_traits>

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    static_assert(M == 16 && N == 16 && K == 16, "only tiles of 16");
    T values[256];
};

// PTX wants 32 bytes for the address, wmma 16 bytes for the stride.
inline void demand_alignment(const void *address, std::size_t stride_bytes) {
    if (reinterpret_cast<std::uintptr_t>(address) % 32 != 0 || stride_bytes % 16 != 0) {
        std::fprintf(stderr, "a tile at %p with a stride of %zu bytes is not aligned\n", address,
                     stride_bytes);
        std::exit(1);
    }
}

template <class Use, class T>
void fill_fragment(fragment<Use, 16, 16, 16, T> &tile, float value) {
    for (T &x : tile.values) {
        x = value;
    }
}

template <class Use, class Layout>
void load_matrix_sync(fragment<Use, 16, 16, 16, __nv_bfloat16, Layout> &tile,
                      const __nv_bfloat16 *from, unsigned stride) {
    demand_alignment(from, stride * sizeof(*from));
    if (emulation::lane() != 0) {
        return;
    }
    const bool by_column = std::is_same<Layout, col_major>::value;
    for (unsigned row = 0; row < 16; row++) {
        for (unsigned column = 0; column < 16; column++) {
            const unsigned at = by_column ? column * stride + row : row * stride + column;
            tile.values[row * 16 + column] = from[at];
        }
    }
}

inline void load_matrix_sync(fragment<accumulator, 16, 16, 16, float> &tile, const float *from,
                             unsigned stride, layout_t) {
    demand_alignment(from, stride * sizeof(*from));
    for (unsigned i = 0; emulation::lane() == 0 && i < 256; i++) {
        tile.values[i] = from[i / 16 * stride + i % 16];
    }
}

inline void store_matrix_sync(float *to, const fragment<accumulator, 16, 16, 16, float> &tile,
                              unsigned stride, layout_t) {
    demand_alignment(to, stride * sizeof(*to));
    for (unsigned i = 0; emulation::lane() == 0 && i < 256; i++) {
        to[i / 16 * stride + i % 16] = tile.values[i];
    }
}

template <class A, class B>
void mma_sync(fragment<accumulator, 16, 16, 16, float> &sums,
              const fragment<matrix_a, 16, 16, 16, __nv_bfloat16, A> &a,
              const fragment<matrix_b, 16, 16, 16, __nv_bfloat16, B> &b,
              const fragment<accumulator, 16, 16, 16, float> &) {
    if (emulation::lane() != 0) {
        return;
    }
    for (unsigned row = 0; row < 16; row++) {
        for (unsigned k = 0; k < 16; k++) {
            const float left = __bfloat162float(a.values[row * 16 + k]);
            for (unsigned column = 0; column < 16; column++) {
                sums.values[row * 16 + column] +=
                    left * __bfloat162float(b.values[k * 16 + column]);
            }
        }
    }
}

} // namespace wmma
} // namespace nvcuda
