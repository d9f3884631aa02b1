// softmax(q·kᵀ·scale)·v head by head, without ever holding the weights of a whole row, and its
// gradient (Dao et al. 2022), in f32; attention_bf16.cu is for bf16. All sums are taken in a fixed
// order.
//
// qkv is [B, N, 3, H, D], to which a bias of [3, H, D] may come, the output [B, N, H, D], lse (the
// logarithm of the sum of the exponentials of a query's scores) and delta [B, H, N]. The grid is
// [B·H, tiles of 16 rows for each warp].
// A warp owns 16 rows (queries, or keys for their gradients) from beginning to end and shares only
// what the block reads of the other side, 32 rows at a time.

#include "device.cuh"

// Rows or columns of a tile.
#define TILE 16u
// Rows of the other side that a block holds at a time.
#define OTHER 32u
// Elements from row to row of a warp's scores.
#define SCORES_STRIDE (OTHER + 4u)

// 16 x 16 sums, half a row for each lane of a warp.
struct Tile {
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
template <unsigned D> struct Stride { static const unsigned value = D + 4; };

// Copies rows of D elements into the block's memory, 16 bytes at a time, with a bias added if there
// is one; zeros beyond the last token.
template <unsigned D>
__device__ void copy_rows(float *to, const float *from, size_t from_stride, const float *bias,
                          unsigned first, unsigned rows, unsigned tokens) {
    const unsigned each = sizeof(uint4) / sizeof(float), pieces = D / each;
    for (unsigned i = threadIdx.x; i < rows * pieces; i += blockDim.x) {
        const unsigned row = i / pieces, piece = i % pieces;
        __align__(16) float values[each] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (first + row < tokens) {
            *(uint4 *)values = ((const uint4 *)(from + (first + row) * from_stride))[piece];
            for (unsigned j = 0; bias && j < each; j++) {
                values[j] += bias[piece * each + j];
            }
        }
        ((uint4 *)(to + row * Stride<D>::value))[piece] = *(uint4 *)values;
    }
}

// scores [16, OTHER] = own [16, D] · otherᵀ
template <unsigned D>
__device__ void multiply_rows(float *scores, const float *own, const float *other) {
    const unsigned stride = Stride<D>::value;
    for (unsigned j = 0; j < OTHER; j += TILE) {
        Tile tile;
        tile.clear();
        for (unsigned k = 0; k < D; k += TILE) {
            tile.add_transposed(own + k, stride, other + j * stride + k, stride);
        }
        tile.store(scores + j, SCORES_STRIDE);
    }
}

// sums += weights [16, OTHER] · other [OTHER, 16] from its column on
template <unsigned D>
__device__ void add_product(Tile &sums, const float *weights, const float *other, unsigned column) {
    const unsigned stride = Stride<D>::value;
    for (unsigned k = 0; k < OTHER; k += TILE) {
        sums.add(weights + k, SCORES_STRIDE, other + k * stride + column, stride);
    }
}

// A lane's half row of a warp's scores.
#define HALF (OTHER / 2u)

template <unsigned D>
__device__ void forward(const float *qkv, const float *bias, float *ys, float *lse, unsigned tokens,
                        unsigned heads, float scale) {
    DYNAMIC_SHARED(shared);
    const unsigned stride = Stride<D>::value, sums_stride = D + 4;
    const unsigned warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float *q = (float *)shared;
    float *k = q + warps * TILE * stride;
    float *v = k + OTHER * stride;
    float *scores = (float *)(v + OTHER * stride) + warp * TILE * SCORES_STRIDE;
    float *sums = (float *)(v + OTHER * stride) + warps * TILE * SCORES_STRIDE +
                  warp * TILE * sums_stride;
    float *weights = (float *)scores;

    const unsigned image = blockIdx.x / heads, head = blockIdx.x % heads;
    const size_t row_stride = 3 * (size_t)heads * D;
    qkv += image * (size_t)tokens * row_stride + head * D;
    const unsigned first = blockIdx.y * warps * TILE;
    const float *q_bias = bias ? bias + head * D : 0;
    const float *k_bias = bias ? q_bias + heads * D : 0, *v_bias = bias ? k_bias + heads * D : 0;
    copy_rows<D>(q, qkv, row_stride, q_bias, first, warps * TILE, tokens);
    q += warp * TILE * stride;

    // Two lanes hold the largest score and the sum of one query.
    const unsigned row = lane / 2, column = lane % 2;
    float max = negative_infinity(), sum = 0.0f;
    for (unsigned i = column; i < D; i += 2) {
        sums[row * sums_stride + i] = 0.0f;
    }
    for (unsigned start = 0; start < tokens; start += OTHER) {
        __syncthreads();
        copy_rows<D>(k, qkv + heads * D, row_stride, k_bias, start, OTHER, tokens);
        copy_rows<D>(v, qkv + 2 * heads * D, row_stride, v_bias, start, OTHER, tokens);
        __syncthreads();
        if (first + warp * TILE >= tokens) {
            // No row of this warp is a token; it only helps to copy.
            continue;
        }
        multiply_rows<D>(scores, q, k);
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
            const float weight = expf(own[i] - largest);
            weights[row * SCORES_STRIDE + column * HALF + i] = weight;
            own_sum += weight;
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
            Tile tile;
            tile.load(sums + j, sums_stride);
            add_product<D>(tile, weights, v, j);
            tile.store(sums + j, sums_stride);
        }
        __syncwarp();
    }
    const unsigned token = first + warp * TILE + row;
    if (token < tokens) {
        float *y = ys + ((size_t)image * tokens + token) * heads * D + head * D;
        for (unsigned i = column; i < D; i += 2) {
            y[i] = (sums[row * sums_stride + i] / sum);
        }
        if (column == 0) {
            lse[(size_t)blockIdx.x * tokens + token] = max + logf(sum);
        }
    }
}

// delta = the product of a query's output and its gradient; one warp for each query and head.
__device__ void row_products(const float *ys, const float *grad, float *delta, unsigned rows,
                             unsigned tokens, unsigned heads, unsigned head_dim) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    float sum = 0.0f;
    for (unsigned i = lane; i < head_dim; i += WARP) {
        const size_t at = (size_t)row * head_dim + i;
        sum += ys[at] * grad[at];
    }
    sum = over_warp<Sum>(sum);
    if (lane == 0) {
        const unsigned head = row % heads, token = row / heads % tokens;
        const unsigned image = row / heads / tokens;
        delta[((size_t)image * heads + head) * tokens + token] = sum;
    }
}

// Writes 16 rows of a gradient by way of a warp's scores.
template <unsigned D>
__device__ void write_rows(Tile *tiles, float *scores, float *to, size_t to_stride, unsigned first,
                           unsigned tokens) {
    const unsigned lane = threadIdx.x % WARP, row = lane / 2, column = lane % 2;
    for (unsigned j = 0; j < D / TILE; j++) {
        __syncwarp();
        tiles[j].store(scores, SCORES_STRIDE);
        __syncwarp();
        if (first + row < tokens) {
            for (unsigned i = column; i < TILE; i += 2) {
                to[(first + row) * to_stride + j * TILE + i] =
                    (scores[row * SCORES_STRIDE + i]);
            }
        }
    }
}

// Rows of the block are keys, and dK and dV are computed, or queries, and dQ is.
//
// With P the attention weights and dP = dO·Vᵀ: dS = P·(dP - delta)·scale, dV = Pᵀ·dO, dK = dSᵀ·Q,
// dQ = dS·K. For keys all matrices are computed transposed, so that rows are keys there too.
template <unsigned D, bool Keys>
__device__ void backward(const float *qkv, const float *bias, const float *lse, const float *delta,
                         const float *grad, float *d_qkv, unsigned tokens, unsigned heads, float scale) {
    DYNAMIC_SHARED(shared);
    const unsigned stride = Stride<D>::value;
    const unsigned warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Own and other rows: k and v, q and the gradient of the output, or the other way round.
    float *own_first = (float *)shared;
    float *own_second = own_first + warps * TILE * stride;
    float *other_first = own_second + warps * TILE * stride;
    float *other_second = other_first + OTHER * stride;
    float *all_scores = (float *)(other_second + OTHER * stride);
    float *scores = all_scores + 2 * warp * TILE * SCORES_STRIDE;
    float *d_scores = scores + TILE * SCORES_STRIDE;
    float *other_lse = all_scores + 2 * warps * TILE * SCORES_STRIDE;
    float *other_delta = other_lse + OTHER;
    float *weights = (float *)scores, *d_weights = (float *)d_scores;

    const unsigned image = blockIdx.x / heads, head = blockIdx.x % heads;
    const size_t row_stride = 3 * (size_t)heads * D, grad_stride = (size_t)heads * D;
    const size_t image_start = image * (size_t)tokens * row_stride + head * D;
    const float *q_rows = qkv + image_start, *k_rows = q_rows + heads * D, *v_rows = k_rows + heads * D;
    const float *grad_rows = grad + image * (size_t)tokens * grad_stride + head * D;
    lse += (size_t)blockIdx.x * tokens;
    delta += (size_t)blockIdx.x * tokens;

    const float *first_rows = Keys ? k_rows : q_rows, *second_rows = Keys ? v_rows : grad_rows;
    const float *q_bias = bias ? bias + head * D : 0;
    const float *k_bias = bias ? q_bias + heads * D : 0, *v_bias = bias ? k_bias + heads * D : 0;
    const float *first_bias = Keys ? k_bias : q_bias, *second_bias = Keys ? v_bias : 0;
    const size_t second_stride = Keys ? row_stride : grad_stride;
    const unsigned first = blockIdx.y * warps * TILE;
    copy_rows<D>(own_first, first_rows, row_stride, first_bias, first, warps * TILE, tokens);
    copy_rows<D>(own_second, second_rows, second_stride, second_bias, first, warps * TILE,
                    tokens);
    own_first += warp * TILE * stride;
    own_second += warp * TILE * stride;
    first_rows = Keys ? q_rows : k_rows;
    second_rows = Keys ? grad_rows : v_rows;
    first_bias = Keys ? q_bias : k_bias;
    second_bias = Keys ? 0 : v_bias;
    const size_t other_stride = Keys ? grad_stride : row_stride;

    const unsigned row = lane / 2, column = lane % 2, own_token = first + warp * TILE + row;
    float own_lse = 0.0f, own_delta = 0.0f;
    if (!Keys && own_token < tokens) {
        own_lse = lse[own_token];
        own_delta = delta[own_token];
    }
    // dK and dV, or dQ alone.
    Tile d_first[D / TILE], d_second[Keys ? D / TILE : 1];
    for (unsigned j = 0; j < D / TILE; j++) {
        d_first[j].clear();
        if (Keys) {
            d_second[j].clear();
        }
    }
    for (unsigned start = 0; start < tokens; start += OTHER) {
        __syncthreads();
        copy_rows<D>(other_first, first_rows, row_stride, first_bias, start, OTHER, tokens);
        copy_rows<D>(other_second, second_rows, other_stride, second_bias, start, OTHER, tokens);
        if (Keys && threadIdx.x < OTHER && start + threadIdx.x < tokens) {
            other_lse[threadIdx.x] = lse[start + threadIdx.x];
            other_delta[threadIdx.x] = delta[start + threadIdx.x];
        }
        __syncthreads();
        if (first + warp * TILE >= tokens) {
            continue;
        }
        multiply_rows<D>(scores, own_first, other_first);
        multiply_rows<D>(d_scores, own_second, other_second);
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
            const unsigned at = row * SCORES_STRIDE + column * HALF + i;
            weights[at] = (p[i]);
            d_weights[at] = (ds[i]);
        }
        __syncwarp();
        for (unsigned j = 0; j < D / TILE; j++) {
            add_product<D>(d_first[j], d_weights, other_first, j * TILE);
            if (Keys) {
                add_product<D>(d_second[j], weights, other_second, j * TILE);
            }
        }
        __syncwarp();
    }
    float *to = d_qkv + image_start + (Keys ? heads * D : 0);
    const unsigned first_own = first + warp * TILE;
    write_rows<D>(d_first, scores, to, row_stride, first_own, tokens);
    if (Keys) {
        write_rows<D>(d_second, scores, to + heads * D, row_stride, first_own, tokens);
    }
}

#define ATTENTION(D)                                                                               \
    extern "C" __global__ void attention_f32_##D(const float *qkv, const float *bias, float *ys,   \
                                                 float *lse, unsigned tokens, unsigned heads,      \
                                                 float scale) {                                    \
        forward<D>(qkv, bias, ys, lse, tokens, heads, scale);                                      \
    }                                                                                              \
    extern "C" __global__ void attention_keys_grad_f32_##D(                                        \
        const float *qkv, const float *bias, const float *lse, const float *delta,                 \
        const float *grad, float *d_qkv, unsigned tokens, unsigned heads, float scale) {           \
        backward<D, true>(qkv, bias, lse, delta, grad, d_qkv, tokens, heads, scale);               \
    }                                                                                              \
    extern "C" __global__ void attention_queries_grad_f32_##D(                                     \
        const float *qkv, const float *bias, const float *lse, const float *delta,                 \
        const float *grad, float *d_qkv, unsigned tokens, unsigned heads, float scale) {           \
        backward<D, false>(qkv, bias, lse, delta, grad, d_qkv, tokens, heads, scale);              \
    }

ATTENTION(32)
ATTENTION(64)

extern "C" __global__ void attention_delta_f32(const float *ys, const float *grad, float *delta,
                                               unsigned rows, unsigned tokens, unsigned heads,
                                               unsigned head_dim) {
    row_products(ys, grad, delta, rows, tokens, heads, head_dim);
}
