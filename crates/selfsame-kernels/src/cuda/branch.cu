// The ends of a transformer block's branches: what a branch adds to the residual stream together
// with the layer norm that follows, and the same backwards. f32 inside, one warp for each row.
//
// A lane has pairs of neighbours, PAIRS of them at most, in registers: the residual stream, the
// widest of all tensors, is read once and written once.

#include "device.cuh"

// Columns of a pair of each lane.
#define PAIR_COLUMNS (2 * WARP)

__device__ inline float factor_of(const float *factors, unsigned row, unsigned tokens) {
    return factors ? factors[row / tokens] : 1.0f;
}

// sums = xs + factor * (product + bias), if there is a product; normed = layer norm of the sums, if
// there is a weight for it.
//
// Row i of xs is its row i·every. stats gets mean and 1/std of each row.
template <class T, unsigned PAIRS>
__device__ void forward(const float *xs, const T *product, const float *bias, const float *factors,
                        const float *weight, const float *norm_bias, float *sums, T *normed,
                        float *stats, unsigned rows, unsigned width, unsigned every,
                        unsigned tokens, float eps) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    // Whole warps leave, and nothing below waits for the block.
    if (row >= rows) {
        return;
    }
    const size_t start = (size_t)row * width;
    xs += (size_t)row * every * width;
    float2 values[PAIRS];
    float sum = 0.0f;
    UNROLL
    for (unsigned j = 0; j < PAIRS; j++) {
        const unsigned i = j * PAIR_COLUMNS + 2 * lane;
        values[j].x = values[j].y = 0.0f;
        if (i < width) {
            values[j] = load_pair(xs + i);
        }
    }
    if (product) {
        const float factor = factor_of(factors, row, tokens);
        UNROLL
        for (unsigned j = 0; j < PAIRS; j++) {
            const unsigned i = j * PAIR_COLUMNS + 2 * lane;
            if (i < width) {
                const float2 branch = load_pair(product + start + i), b = load_pair(bias + i);
                values[j].x += factor * (branch.x + b.x);
                values[j].y += factor * (branch.y + b.y);
                store_pair(sums + start + i, values[j]);
            }
        }
    }
    if (!weight) {
        return;
    }
    UNROLL
    for (unsigned j = 0; j < PAIRS; j++) {
        sum += values[j].x + values[j].y;
    }
    const float mean = over_warp<Sum>(sum) / width;
    float squares = 0.0f;
    UNROLL
    for (unsigned j = 0; j < PAIRS; j++) {
        if (j * PAIR_COLUMNS + 2 * lane < width) {
            const float x = values[j].x - mean, y = values[j].y - mean;
            squares += x * x + y * y;
        }
    }
    const float inverse_std = 1.0f / sqrtf(over_warp<Sum>(squares) / width + eps);
    UNROLL
    for (unsigned j = 0; j < PAIRS; j++) {
        const unsigned i = j * PAIR_COLUMNS + 2 * lane;
        if (i < width) {
            const float2 w = load_pair(weight + i), b = load_pair(norm_bias + i);
            float2 y;
            y.x = (values[j].x - mean) * inverse_std * w.x + b.x;
            y.y = (values[j].y - mean) * inverse_std * w.y + b.y;
            store_pair(normed + start + i, y);
        }
    }
    if (lane == 0) {
        stats[2 * (size_t)row] = mean;
        stats[2 * (size_t)row + 1] = inverse_std;
    }
}

// Adds the sums that the warps of a block hold for the columns and writes them; the warps' order is
// that of the sum.
template <unsigned PAIRS>
__device__ void write_sums(const float2 *own, float *shared, float *to, unsigned width) {
    const unsigned warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Readers of the last sums are done.
    __syncthreads();
    UNROLL
    for (unsigned j = 0; j < PAIRS; j++) {
        const unsigned i = j * PAIR_COLUMNS + 2 * lane;
        if (i < width) {
            store_pair(shared + warp * width + i, own[j]);
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (unsigned w = 0; w < warps; w++) {
            sum += shared[w * width + i];
        }
        to[i] = sum;
    }
}

// d_sums = residual + what the layer norm's input gets for d_normed, if there is one; d_product =
// factor * d_sums, if it is wanted.
//
// Only rows whose number `every` divides have a residual, the others' is 0; without a residual all
// are. Without d_normed, d_sums is not written. parts gets, for each part of the rows,
// [gradient of the norm's weight | of its bias | sums of d_product].
template <class T, unsigned PAIRS>
__device__ void backward(const float *xs, const float *stats, const float *weight,
                         const T *d_normed, const float *residual, const float *factors,
                         float *d_sums, T *d_product, float *parts, unsigned rows, unsigned width,
                         unsigned every, unsigned tokens, unsigned rows_per_part) {
    DYNAMIC_SHARED(shared);
    const unsigned warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const unsigned first = blockIdx.x * rows_per_part;
    const unsigned end = smaller(rows, first + rows_per_part);
    float2 weight_sums[PAIRS], bias_sums[PAIRS], product_sums[PAIRS];
    UNROLL
    for (unsigned j = 0; j < PAIRS; j++) {
        weight_sums[j].x = weight_sums[j].y = 0.0f;
        bias_sums[j].x = bias_sums[j].y = 0.0f;
        product_sums[j].x = product_sums[j].y = 0.0f;
    }
    for (unsigned row = first + warp; row < end; row += warps) {
        const size_t start = (size_t)row * width;
        float2 values[PAIRS];
        UNROLL
        for (unsigned j = 0; j < PAIRS; j++) {
            const unsigned i = j * PAIR_COLUMNS + 2 * lane;
            values[j].x = values[j].y = 0.0f;
            if (residual && i < width && row % every == 0) {
                values[j] = load_pair(residual + (size_t)(row / every) * width + i);
            }
        }
        if (d_normed) {
            const float mean = stats[2 * (size_t)row], inverse_std = stats[2 * (size_t)row + 1];
            float2 grads[PAIRS], normalized[PAIRS];
            float sum = 0.0f, dot = 0.0f;
            UNROLL
            for (unsigned j = 0; j < PAIRS; j++) {
                const unsigned i = j * PAIR_COLUMNS + 2 * lane;
                grads[j].x = grads[j].y = normalized[j].x = normalized[j].y = 0.0f;
                if (i < width) {
                    const float2 x = load_pair(xs + start + i), w = load_pair(weight + i);
                    const float2 g = load_pair(d_normed + start + i);
                    normalized[j].x = (x.x - mean) * inverse_std;
                    normalized[j].y = (x.y - mean) * inverse_std;
                    weight_sums[j].x += g.x * normalized[j].x;
                    weight_sums[j].y += g.y * normalized[j].y;
                    bias_sums[j].x += g.x;
                    bias_sums[j].y += g.y;
                    grads[j].x = g.x * w.x;
                    grads[j].y = g.y * w.y;
                    sum += grads[j].x + grads[j].y;
                    dot += grads[j].x * normalized[j].x + grads[j].y * normalized[j].y;
                }
            }
            sum = over_warp<Sum>(sum) / width;
            dot = over_warp<Sum>(dot) / width;
            UNROLL
            for (unsigned j = 0; j < PAIRS; j++) {
                const unsigned i = j * PAIR_COLUMNS + 2 * lane;
                if (i < width) {
                    values[j].x += inverse_std * (grads[j].x - sum - normalized[j].x * dot);
                    values[j].y += inverse_std * (grads[j].y - sum - normalized[j].y * dot);
                    store_pair(d_sums + start + i, values[j]);
                }
            }
        }
        if (d_product) {
            const float factor = factor_of(factors, row, tokens);
            UNROLL
            for (unsigned j = 0; j < PAIRS; j++) {
                const unsigned i = j * PAIR_COLUMNS + 2 * lane;
                if (i < width) {
                    float2 d = values[j];
                    d.x *= factor;
                    d.y *= factor;
                    product_sums[j].x += d.x;
                    product_sums[j].y += d.y;
                    store_pair(d_product + start + i, d);
                }
            }
        }
    }
    parts += 3 * (size_t)blockIdx.x * width;
    float *of_warps = (float *)shared;
    write_sums<PAIRS>(weight_sums, of_warps, parts, width);
    write_sums<PAIRS>(bias_sums, of_warps, parts + width, width);
    write_sums<PAIRS>(product_sums, of_warps, parts + 2 * width, width);
}

#define BRANCH(suffix, T, PAIRS)                                                                   \
    extern "C" __global__ void branch_##suffix(                                                    \
        const float *xs, const T *product, const float *bias, const float *factors,                \
        const float *weight, const float *norm_bias, float *sums, T *normed, float *stats,         \
        unsigned rows, unsigned width, unsigned every, unsigned tokens, float eps) {               \
        forward<T, PAIRS>(xs, product, bias, factors, weight, norm_bias, sums, normed, stats,      \
                          rows, width, every, tokens, eps);                                        \
    }                                                                                              \
    extern "C" __global__ void branch_grad_##suffix(                                               \
        const float *xs, const float *stats, const float *weight, const T *d_normed,               \
        const float *residual, const float *factors, float *d_sums, T *d_product, float *parts,    \
        unsigned rows, unsigned width, unsigned every, unsigned tokens, unsigned rows_per_part) {  \
        backward<T, PAIRS>(xs, stats, weight, d_normed, residual, factors, d_sums, d_product,      \
                           parts, rows, width, every, tokens, rows_per_part);                      \
    }

#define BRANCHES(suffix, T)                                                                        \
    BRANCH(suffix##_192, T, 3)                                                                     \
    BRANCH(suffix##_384, T, 6)                                                                     \
    BRANCH(suffix##_768, T, 12)                                                                    \
    BRANCH(suffix##_1024, T, 16)

BRANCHES(f32, float)
BRANCHES(bf16, bf16)
