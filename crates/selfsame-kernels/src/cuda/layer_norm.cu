// Layer normalisation over the last dimension: f32 inside, one warp for each row.

#include "device.cuh"

// ys = (xs - mean) / sqrt(var + eps) * weight + bias; stats gets mean and 1/std of each row.
template <class In, class Out>
__device__ void forward(const In *xs, const float *weight, const float *bias, Out *ys, float *stats,
                        unsigned rows, unsigned width, float eps) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    // Whole warps leave, and nothing below waits for the block.
    if (row >= rows) {
        return;
    }
    xs += (size_t)row * width;
    ys += (size_t)row * width;
    float sum = 0.0f;
    for (unsigned i = lane; i < width; i += WARP) {
        sum += to_f32(xs[i]);
    }
    const float mean = over_warp<Sum>(sum) / width;
    float squares = 0.0f;
    for (unsigned i = lane; i < width; i += WARP) {
        const float centered = to_f32(xs[i]) - mean;
        squares += centered * centered;
    }
    const float inverse_std = 1.0f / sqrtf(over_warp<Sum>(squares) / width + eps);
    for (unsigned i = lane; i < width; i += WARP) {
        ys[i] = from_f32<Out>((to_f32(xs[i]) - mean) * inverse_std * weight[i] + bias[i]);
    }
    if (lane == 0) {
        stats[2 * (size_t)row] = mean;
        stats[2 * (size_t)row + 1] = inverse_std;
    }
}

// The gradient of xs.
template <class In, class Out>
__device__ void backward(const In *xs, const float *stats, const float *weight, const Out *grad,
                         In *dx, unsigned rows, unsigned width) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    const float mean = stats[2 * (size_t)row], inverse_std = stats[2 * (size_t)row + 1];
    xs += (size_t)row * width;
    grad += (size_t)row * width;
    dx += (size_t)row * width;
    float sum = 0.0f, dot = 0.0f;
    for (unsigned i = lane; i < width; i += WARP) {
        const float g = to_f32(grad[i]) * weight[i];
        sum += g;
        dot += g * (to_f32(xs[i]) - mean) * inverse_std;
    }
    sum = over_warp<Sum>(sum) / width;
    dot = over_warp<Sum>(dot) / width;
    for (unsigned i = lane; i < width; i += WARP) {
        const float g = to_f32(grad[i]) * weight[i];
        const float normalized = (to_f32(xs[i]) - mean) * inverse_std;
        dx[i] = from_f32<In>(inverse_std * (g - sum - normalized * dot));
    }
}

// The share of some rows in the gradients of weight and bias: parts [part][weight | bias].
template <class In, class Out>
__device__ void weights_backward(const In *xs, const float *stats, const Out *grad, float *parts,
                                 unsigned rows, unsigned width, unsigned rows_per_part) {
    __shared__ float weight_rows[COLUMN_ROWS][WARP + 1], bias_rows[COLUMN_ROWS][WARP + 1];
    const unsigned column = blockIdx.x * WARP + threadIdx.x;
    const unsigned first = blockIdx.y * rows_per_part;
    const unsigned end = smaller(rows, first + rows_per_part);
    float d_weight = 0.0f, d_bias = 0.0f;
    if (column < width) {
        for (unsigned row = first + threadIdx.y; row < end; row += COLUMN_ROWS) {
            const float mean = stats[2 * (size_t)row], inverse_std = stats[2 * (size_t)row + 1];
            const size_t i = (size_t)row * width + column;
            const float g = to_f32(grad[i]);
            d_weight += g * (to_f32(xs[i]) - mean) * inverse_std;
            d_bias += g;
        }
    }
    d_weight = over_rows(d_weight, weight_rows);
    d_bias = over_rows(d_bias, bias_rows);
    if (threadIdx.y == 0 && column < width) {
        parts += 2 * (size_t)blockIdx.y * width;
        parts[column] = d_weight;
        parts[width + column] = d_bias;
    }
}

#define LAYER_NORM(suffix, In, Out)                                                                \
    extern "C" __global__ void layer_norm_##suffix(const In *xs, const float *weight,              \
                                                   const float *bias, Out *ys, float *stats,       \
                                                   unsigned rows, unsigned width, float eps) {     \
        forward(xs, weight, bias, ys, stats, rows, width, eps);                                    \
    }                                                                                              \
    extern "C" __global__ void layer_norm_grad_##suffix(                                           \
        const In *xs, const float *stats, const float *weight, const Out *grad, In *dx,            \
        unsigned rows, unsigned width) {                                                           \
        backward(xs, stats, weight, grad, dx, rows, width);                                        \
    }                                                                                              \
    extern "C" __global__ void layer_norm_weights_grad_##suffix(                                   \
        const In *xs, const float *stats, const Out *grad, float *parts, unsigned rows,            \
        unsigned width, unsigned rows_per_part) {                                                  \
        weights_backward(xs, stats, grad, parts, rows, width, rows_per_part);                      \
    }

LAYER_NORM(f32, float, float)
LAYER_NORM(bf16, bf16, bf16)
LAYER_NORM(f32_bf16, float, bf16)
