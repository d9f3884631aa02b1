// softmax(q·kᵀ·scale)·v head by head, without ever holding the weights of a whole row, and its
// gradient (Dao et al. 2022). All sums are taken in a fixed order.
//
// qkv is [B, N, 3, H, D], the output [B, N, H, D], lse (the logarithm of the sum of the
// exponentials of a query's scores) and delta [B, H, N]. The grid is [B·H, tiles of 16 rows for each warp].
// A warp owns 16 rows (queries, or keys for their gradients) from beginning to end and shares only
// what the block reads of the other side, 32 rows at a time.

#include "device.cuh"

#include <mma.h>

// Rows or columns of a tensor-core tile.
#define TILE 16u
// Rows of the other side that a block holds at a time.
#define OTHER 32u
// Elements from row to row of a warp's scores.
#define SCORES_STRIDE (OTHER + 4u)

// 16 x 16 sums in f32, spread over the lanes of a warp.
template <class T> struct Tile;

// On the tensor cores.
template <> struct Tile<bf16> {
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums;

    __device__ void clear() { nvcuda::wmma::fill_fragment(sums, 0.0f); }

    __device__ void load(const float *from, unsigned stride) {
        nvcuda::wmma::load_matrix_sync(sums, from, stride, nvcuda::wmma::mem_row_major);
    }

    __device__ void store(float *to, unsigned stride) const {
        nvcuda::wmma::store_matrix_sync(to, sums, stride, nvcuda::wmma::mem_row_major);
    }

    // += a·b for the 16 columns of a from where it points.
    __device__ void add(const bf16 *a, unsigned a_stride, const bf16 *b, unsigned b_stride) {
        add_as<nvcuda::wmma::row_major>(a, a_stride, b, b_stride);
    }

    // += a·bᵀ
    __device__ void add_transposed(const bf16 *a, unsigned a_stride, const bf16 *b,
                                   unsigned b_stride) {
        add_as<nvcuda::wmma::col_major>(a, a_stride, b, b_stride);
    }

  private:
    template <class Layout>
    __device__ void add_as(const bf16 *a, unsigned a_stride, const bf16 *b, unsigned b_stride) {
        using namespace nvcuda::wmma;
        fragment<matrix_a, 16, 16, 16, bf16, row_major> left;
        fragment<matrix_b, 16, 16, 16, bf16, Layout> right;
        load_matrix_sync(left, a, a_stride);
        load_matrix_sync(right, b, b_stride);
        mma_sync(sums, left, right, sums);
    }
};

// In f32: half a row for each lane.
template <> struct Tile<float> {
    float sums[8];

    static __device__ unsigned row() { return threadIdx.x % WARP / 2; }
    static __device__ unsigned column() { return threadIdx.x % 2 * 8; }

    __device__ void clear() {
        for (unsigned j = 0; j < 8; j++) {
            sums[j] = 0.0f;
        }
    }

    __device__ void load(const float *from, unsigned stride) {
        for (unsigned j = 0; j < 8; j++) {
            sums[j] = from[row() * stride + column() + j];
        }
    }

    __device__ void store(float *to, unsigned stride) const {
        for (unsigned j = 0; j < 8; j++) {
            to[row() * stride + column() + j] = sums[j];
        }
    }

    __device__ void add(const float *a, unsigned a_stride, const float *b, unsigned b_stride) {
        for (unsigned k = 0; k < TILE; k++) {
            const float left = a[row() * a_stride + k];
            for (unsigned j = 0; j < 8; j++) {
                sums[j] += left * b[k * b_stride + column() + j];
            }
        }
    }

    __device__ void add_transposed(const float *a, unsigned a_stride, const float *b,
                                   unsigned b_stride) {
        for (unsigned k = 0; k < TILE; k++) {
            const float left = a[row() * a_stride + k];
            for (unsigned j = 0; j < 8; j++) {
                sums[j] += left * b[(column() + j) * b_stride + k];
            }
        }
    }
};

// From row to row of a tile of D columns: padded, so that rows start in different banks.
template <class T, unsigned D> struct Stride { static const unsigned value = D + 16 / sizeof(T); };

// Copies rows of D elements into the block's memory, 16 bytes at a time; zeros beyond the last
// token.
template <class T, unsigned D>
__device__ void copy_rows(T *to, const T *from, size_t from_stride, unsigned first, unsigned rows,
                          unsigned tokens) {
    const unsigned pieces = D * sizeof(T) / sizeof(uint4);
    for (unsigned i = threadIdx.x; i < rows * pieces; i += blockDim.x) {
        const unsigned row = i / pieces, piece = i % pieces;
        uint4 values = {0, 0, 0, 0};
        if (first + row < tokens) {
            values = ((const uint4 *)(from + (first + row) * from_stride))[piece];
        }
        ((uint4 *)(to + row * Stride<T, D>::value))[piece] = values;
    }
}

// scores [16, OTHER] = own [16, D] · otherᵀ
template <class T, unsigned D>
__device__ void multiply_rows(float *scores, const T *own, const T *other) {
    const unsigned stride = Stride<T, D>::value;
    for (unsigned j = 0; j < OTHER; j += TILE) {
        Tile<T> tile;
        tile.clear();
        for (unsigned k = 0; k < D; k += TILE) {
            tile.add_transposed(own + k, stride, other + j * stride + k, stride);
        }
        tile.store(scores + j, SCORES_STRIDE);
    }
}

// Where the weights lie that replace a warp's scores: the same rows, read as T.
template <class T> struct WeightStride {
    static const unsigned value = SCORES_STRIDE * sizeof(float) / sizeof(T);
};

// sums += weights [16, OTHER] · other [OTHER, 16] from its column on
template <class T, unsigned D>
__device__ void add_product(Tile<T> &sums, const T *weights, const T *other, unsigned column) {
    const unsigned stride = Stride<T, D>::value;
    for (unsigned k = 0; k < OTHER; k += TILE) {
        sums.add(weights + k, WeightStride<T>::value, other + k * stride + column, stride);
    }
}

// A lane's half row of a warp's scores.
#define HALF (OTHER / 2u)

template <class T, unsigned D>
__device__ void forward(const T *qkv, T *ys, float *lse, unsigned tokens, unsigned heads,
                        float scale) {
    DYNAMIC_SHARED(shared);
    const unsigned stride = Stride<T, D>::value, sums_stride = D + 4;
    const unsigned warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    T *q = (T *)shared;
    T *k = q + warps * TILE * stride;
    T *v = k + OTHER * stride;
    float *scores = (float *)(v + OTHER * stride) + warp * TILE * SCORES_STRIDE;
    float *sums = (float *)(v + OTHER * stride) + warps * TILE * SCORES_STRIDE +
                  warp * TILE * sums_stride;
    T *weights = (T *)scores;

    const unsigned image = blockIdx.x / heads, head = blockIdx.x % heads;
    const size_t row_stride = 3 * (size_t)heads * D;
    qkv += image * (size_t)tokens * row_stride + head * D;
    const unsigned first = blockIdx.y * warps * TILE;
    copy_rows<T, D>(q, qkv, row_stride, first, warps * TILE, tokens);
    q += warp * TILE * stride;

    // Two lanes hold the largest score and the sum of one query.
    const unsigned row = lane / 2, column = lane % 2;
    float max = negative_infinity(), sum = 0.0f;
    for (unsigned i = column; i < D; i += 2) {
        sums[row * sums_stride + i] = 0.0f;
    }
    for (unsigned start = 0; start < tokens; start += OTHER) {
        __syncthreads();
        copy_rows<T, D>(k, qkv + heads * D, row_stride, start, OTHER, tokens);
        copy_rows<T, D>(v, qkv + 2 * heads * D, row_stride, start, OTHER, tokens);
        __syncthreads();
        if (first + warp * TILE >= tokens) {
            // No row of this warp is a token; it only helps to copy.
            continue;
        }
        multiply_rows<T, D>(scores, q, k);
        __syncwarp();
        float own[HALF], largest = max;
        for (unsigned i = 0; i < HALF; i++) {
            const unsigned key = column * HALF + i;
            own[i] = start + key < tokens ? scores[row * SCORES_STRIDE + key] * scale
                                          : negative_infinity();
            largest = Max::of(own[i], largest);
        }
        largest = Max::of(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        // The weights go where the scores were, and a shuffle orders no memory.
        __syncwarp();
        float own_sum = 0.0f;
        for (unsigned i = 0; i < HALF; i++) {
            const T weight = from_f32<T>(expf(own[i] - largest));
            weights[row * WeightStride<T>::value + column * HALF + i] = weight;
            own_sum += to_f32(weight);
        }
        own_sum += __shfl_xor_sync(0xffffffffu, own_sum, 1);
        const float keep = expf(max - largest);
        sum = sum * keep + own_sum;
        max = largest;
        for (unsigned i = column; i < D; i += 2) {
            sums[row * sums_stride + i] *= keep;
        }
        __syncwarp();
        for (unsigned j = 0; j < D; j += TILE) {
            Tile<T> tile;
            tile.load(sums + j, sums_stride);
            add_product<T, D>(tile, weights, v, j);
            tile.store(sums + j, sums_stride);
        }
        __syncwarp();
    }
    const unsigned token = first + warp * TILE + row;
    if (token < tokens) {
        T *y = ys + ((size_t)image * tokens + token) * heads * D + head * D;
        for (unsigned i = column; i < D; i += 2) {
            y[i] = from_f32<T>(sums[row * sums_stride + i] / sum);
        }
        if (column == 0) {
            lse[(size_t)blockIdx.x * tokens + token] = max + logf(sum);
        }
    }
}

// delta = the product of a query's output and its gradient; one warp for each query and head.
template <class T>
__device__ void row_products(const T *ys, const T *grad, float *delta, unsigned rows,
                             unsigned tokens, unsigned heads, unsigned head_dim) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    float sum = 0.0f;
    for (unsigned i = lane; i < head_dim; i += WARP) {
        const size_t at = (size_t)row * head_dim + i;
        sum += to_f32(ys[at]) * to_f32(grad[at]);
    }
    sum = over_warp<Sum>(sum);
    if (lane == 0) {
        const unsigned head = row % heads, token = row / heads % tokens;
        const unsigned image = row / heads / tokens;
        delta[((size_t)image * heads + head) * tokens + token] = sum;
    }
}

// Writes 16 rows of a gradient by way of a warp's scores.
template <class T, unsigned D>
__device__ void write_rows(Tile<T> *tiles, float *scores, T *to, size_t to_stride, unsigned first,
                           unsigned tokens) {
    const unsigned lane = threadIdx.x % WARP, row = lane / 2, column = lane % 2;
    for (unsigned j = 0; j < D / TILE; j++) {
        __syncwarp();
        tiles[j].store(scores, SCORES_STRIDE);
        __syncwarp();
        if (first + row < tokens) {
            for (unsigned i = column; i < TILE; i += 2) {
                to[(first + row) * to_stride + j * TILE + i] =
                    from_f32<T>(scores[row * SCORES_STRIDE + i]);
            }
        }
    }
}

// Rows of the block are keys, and dK and dV are computed, or queries, and dQ is.
//
// With P the attention weights and dP = dO·Vᵀ: dS = P·(dP - delta)·scale, dV = Pᵀ·dO, dK = dSᵀ·Q,
// dQ = dS·K. For keys all matrices are computed transposed, so that rows are keys there too.
template <class T, unsigned D, bool Keys>
__device__ void backward(const T *qkv, const float *lse, const float *delta, const T *grad,
                         T *d_qkv, unsigned tokens, unsigned heads, float scale) {
    DYNAMIC_SHARED(shared);
    const unsigned stride = Stride<T, D>::value;
    const unsigned warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Own and other rows: k and v, q and the gradient of the output, or the other way round.
    T *own_first = (T *)shared;
    T *own_second = own_first + warps * TILE * stride;
    T *other_first = own_second + warps * TILE * stride;
    T *other_second = other_first + OTHER * stride;
    float *all_scores = (float *)(other_second + OTHER * stride);
    float *scores = all_scores + 2 * warp * TILE * SCORES_STRIDE;
    float *d_scores = scores + TILE * SCORES_STRIDE;
    float *other_lse = all_scores + 2 * warps * TILE * SCORES_STRIDE;
    float *other_delta = other_lse + OTHER;
    T *weights = (T *)scores, *d_weights = (T *)d_scores;

    const unsigned image = blockIdx.x / heads, head = blockIdx.x % heads;
    const size_t row_stride = 3 * (size_t)heads * D, grad_stride = (size_t)heads * D;
    const size_t image_start = image * (size_t)tokens * row_stride + head * D;
    const T *q_rows = qkv + image_start, *k_rows = q_rows + heads * D, *v_rows = k_rows + heads * D;
    const T *grad_rows = grad + image * (size_t)tokens * grad_stride + head * D;
    lse += (size_t)blockIdx.x * tokens;
    delta += (size_t)blockIdx.x * tokens;

    const T *first_rows = Keys ? k_rows : q_rows, *second_rows = Keys ? v_rows : grad_rows;
    const size_t second_stride = Keys ? row_stride : grad_stride;
    const unsigned first = blockIdx.y * warps * TILE;
    copy_rows<T, D>(own_first, first_rows, row_stride, first, warps * TILE, tokens);
    copy_rows<T, D>(own_second, second_rows, second_stride, first, warps * TILE, tokens);
    own_first += warp * TILE * stride;
    own_second += warp * TILE * stride;
    first_rows = Keys ? q_rows : k_rows;
    second_rows = Keys ? grad_rows : v_rows;
    const size_t other_stride = Keys ? grad_stride : row_stride;

    const unsigned row = lane / 2, column = lane % 2, own_token = first + warp * TILE + row;
    float own_lse = 0.0f, own_delta = 0.0f;
    if (!Keys && own_token < tokens) {
        own_lse = lse[own_token];
        own_delta = delta[own_token];
    }
    // dK and dV, or dQ alone.
    Tile<T> d_first[D / TILE], d_second[Keys ? D / TILE : 1];
    for (unsigned j = 0; j < D / TILE; j++) {
        d_first[j].clear();
        if (Keys) {
            d_second[j].clear();
        }
    }
    for (unsigned start = 0; start < tokens; start += OTHER) {
        __syncthreads();
        copy_rows<T, D>(other_first, first_rows, row_stride, start, OTHER, tokens);
        copy_rows<T, D>(other_second, second_rows, other_stride, start, OTHER, tokens);
        if (Keys && threadIdx.x < OTHER && start + threadIdx.x < tokens) {
            other_lse[threadIdx.x] = lse[start + threadIdx.x];
            other_delta[threadIdx.x] = delta[start + threadIdx.x];
        }
        __syncthreads();
        if (first + warp * TILE >= tokens) {
            continue;
        }
        multiply_rows<T, D>(scores, own_first, other_first);
        multiply_rows<T, D>(d_scores, own_second, other_second);
        __syncwarp();
        float p[HALF], ds[HALF];
        for (unsigned i = 0; i < HALF; i++) {
            const unsigned other = column * HALF + i, at = row * SCORES_STRIDE + other;
            p[i] = ds[i] = 0.0f;
            if (own_token < tokens && start + other < tokens) {
                p[i] = expf(scores[at] * scale - (Keys ? other_lse[other] : own_lse));
                ds[i] = p[i] * (d_scores[at] - (Keys ? other_delta[other] : own_delta)) * scale;
            }
        }
        __syncwarp();
        for (unsigned i = 0; i < HALF; i++) {
            const unsigned at = row * WeightStride<T>::value + column * HALF + i;
            weights[at] = from_f32<T>(p[i]);
            d_weights[at] = from_f32<T>(ds[i]);
        }
        __syncwarp();
        for (unsigned j = 0; j < D / TILE; j++) {
            add_product<T, D>(d_first[j], d_weights, other_first, j * TILE);
            if (Keys) {
                add_product<T, D>(d_second[j], weights, other_second, j * TILE);
            }
        }
        __syncwarp();
    }
    T *to = d_qkv + image_start + (Keys ? heads * D : 0);
    const unsigned first_own = first + warp * TILE;
    write_rows<T, D>(d_first, scores, to, row_stride, first_own, tokens);
    if (Keys) {
        write_rows<T, D>(d_second, scores, to + heads * D, row_stride, first_own, tokens);
    }
}

#define ATTENTION(suffix, T, D)                                                                    \
    extern "C" __global__ void attention_##suffix(const T *qkv, T *ys, float *lse,                 \
                                                  unsigned tokens, unsigned heads, float scale) {  \
        forward<T, D>(qkv, ys, lse, tokens, heads, scale);                                         \
    }                                                                                              \
    extern "C" __global__ void attention_keys_grad_##suffix(                                       \
        const T *qkv, const float *lse, const float *delta, const T *grad, T *d_qkv,               \
        unsigned tokens, unsigned heads, float scale) {                                            \
        backward<T, D, true>(qkv, lse, delta, grad, d_qkv, tokens, heads, scale);                  \
    }                                                                                              \
    extern "C" __global__ void attention_queries_grad_##suffix(                                    \
        const T *qkv, const float *lse, const float *delta, const T *grad, T *d_qkv,               \
        unsigned tokens, unsigned heads, float scale) {                                            \
        backward<T, D, false>(qkv, lse, delta, grad, d_qkv, tokens, heads, scale);                 \
    }

ATTENTION(f32_32, float, 32)
ATTENTION(f32_64, float, 64)
ATTENTION(bf16_32, bf16, 32)
ATTENTION(bf16_64, bf16, 64)

extern "C" __global__ void attention_delta_f32(const float *ys, const float *grad, float *delta,
                                               unsigned rows, unsigned tokens, unsigned heads,
                                               unsigned head_dim) {
    row_products(ys, grad, delta, rows, tokens, heads, head_dim);
}

extern "C" __global__ void attention_delta_bf16(const bf16 *ys, const bf16 *grad, float *delta,
                                                unsigned rows, unsigned tokens, unsigned heads,
                                                unsigned head_dim) {
    row_products(ys, grad, delta, rows, tokens, heads, head_dim);
}
