// Bias and GELU in its exact form, and sums over rows. A thread stays in its column.

#include "device.cuh"

// Distribution function of the standard normal distribution.
__device__ inline float normal_cdf(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678118654752f));
}

__device__ inline float gelu(float x) { return x * normal_cdf(x); }

__device__ inline float gelu_slope(float x) {
    const float density = 0.39894228040143268f * expf(-0.5f * x * x);
    return normal_cdf(x) + x * density;
}

// ys = gelu(xs + bias), or xs + bias; without a bias it is 0.
template <class T, bool Gelu>
__device__ void forward(const T *xs, const float *bias, T *ys, unsigned rows, unsigned width,
                        unsigned rows_per_part) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    const float b = bias ? bias[column] : 0.0f;
    const unsigned first = blockIdx.y * rows_per_part;
    const unsigned end = smaller(rows, first + rows_per_part);
    for (unsigned row = first; row < end; row++) {
        const size_t i = (size_t)row * width + column;
        const float x = to_f32(xs[i]) + b;
        ys[i] = from_f32<T>(Gelu ? gelu(x) : x);
    }
}

// dx = grad * slope of gelu(xs + bias), and, if wanted, the sums of dx over the rows of each part.
template <class T>
__device__ void backward(const T *xs, const float *bias, const T *grad, T *dx, float *parts,
                         unsigned rows, unsigned width, unsigned rows_per_part) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) {
        return;
    }
    const float b = bias ? bias[column] : 0.0f;
    const unsigned first = blockIdx.y * rows_per_part;
    const unsigned end = smaller(rows, first + rows_per_part);
    float sum = 0.0f;
    for (unsigned row = first; row < end; row++) {
        const size_t i = (size_t)row * width + column;
        const float d = to_f32(grad[i]) * gelu_slope(to_f32(xs[i]) + b);
        dx[i] = from_f32<T>(d);
        sum += d;
    }
    if (parts) {
        parts[(size_t)blockIdx.y * width + column] = sum;
    }
}

// The sums over the rows of each part.
template <class T>
__device__ void column_sums(const T *xs, float *parts, unsigned rows, unsigned width,
                            unsigned rows_per_part) {
    __shared__ float sums[COLUMN_ROWS][WARP + 1];
    const unsigned column = blockIdx.x * WARP + threadIdx.x;
    const unsigned first = blockIdx.y * rows_per_part;
    const unsigned end = smaller(rows, first + rows_per_part);
    float sum = 0.0f;
    if (column < width) {
        for (unsigned row = first + threadIdx.y; row < end; row += COLUMN_ROWS) {
            sum += to_f32(xs[(size_t)row * width + column]);
        }
    }
    sum = over_rows(sum, sums);
    if (threadIdx.y == 0 && column < width) {
        parts[(size_t)blockIdx.y * width + column] = sum;
    }
}

#define GELU(suffix, T)                                                                            \
    extern "C" __global__ void bias_gelu_##suffix(const T *xs, const float *bias, T *ys,           \
                                                  unsigned rows, unsigned width,                   \
                                                  unsigned rows_per_part) {                        \
        forward<T, true>(xs, bias, ys, rows, width, rows_per_part);                                \
    }                                                                                              \
    extern "C" __global__ void add_bias_##suffix(const T *xs, const float *bias, T *ys,            \
                                                 unsigned rows, unsigned width,                    \
                                                 unsigned rows_per_part) {                         \
        forward<T, false>(xs, bias, ys, rows, width, rows_per_part);                               \
    }                                                                                              \
    extern "C" __global__ void bias_gelu_grad_##suffix(                                            \
        const T *xs, const float *bias, const T *grad, T *dx, float *parts, unsigned rows,         \
        unsigned width, unsigned rows_per_part) {                                                  \
        backward(xs, bias, grad, dx, parts, rows, width, rows_per_part);                           \
    }                                                                                              \
    extern "C" __global__ void column_sums_##suffix(const T *xs, float *parts, unsigned rows,      \
                                                    unsigned width, unsigned rows_per_part) {      \
        column_sums(xs, parts, rows, width, rows_per_part);                                        \
    }

GELU(f32, float)
GELU(bf16, bf16)
