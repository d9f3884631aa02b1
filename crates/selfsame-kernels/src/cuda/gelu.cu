// Bias and GELU in its exact form, and sums over rows. A thread stays in its columns.

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

// Columns of a thread: neighbours, where the width allows it.
#define MANY 8u

template <unsigned N> __device__ void load_columns(float *values, const float *from) {
    if (N == 1) {
        values[0] = from[0];
    }
    UNROLL
    for (unsigned j = 0; j + 1 < N; j += 2) {
        const float2 pair = load_pair(from + j);
        values[j] = pair.x;
        values[j + 1] = pair.y;
    }
}

template <unsigned N> __device__ void load_columns(float *values, const bf16 *from) {
    if (N == 1) {
        values[0] = to_f32(from[0]);
    } else {
        const uint4 words = *(const uint4 *)from;
        const unsigned bits[4] = {words.x, words.y, words.z, words.w};
        UNROLL
        for (unsigned j = 0; j < N; j++) {
            const unsigned word = bits[j / 2];
            values[j] = __int_as_float(j % 2 ? word & 0xffff0000u : word << 16);
        }
    }
}

template <unsigned N> __device__ void store_columns(float *to, const float *values) {
    if (N == 1) {
        to[0] = values[0];
    }
    UNROLL
    for (unsigned j = 0; j + 1 < N; j += 2) {
        float2 pair;
        pair.x = values[j];
        pair.y = values[j + 1];
        store_pair(to + j, pair);
    }
}

template <unsigned N> __device__ void store_columns(bf16 *to, const float *values) {
    if (N == 1) {
        to[0] = from_f32<bf16>(values[0]);
    } else {
        unsigned bits[4];
        UNROLL
        for (unsigned j = 0; j < 4; j++) {
            bits[j] = bits_of(from_f32<bf16>(values[2 * j % N])) |
                      bits_of(from_f32<bf16>(values[(2 * j + 1) % N])) << 16;
        }
        const uint4 words = {bits[0], bits[1], bits[2], bits[3]};
        *(uint4 *)to = words;
    }
}

// Which columns and rows a thread of a block of 32 x COLUMN_ROWS has.
template <unsigned N> struct Own {
    unsigned column, first, end;

    __device__ Own(unsigned rows, unsigned rows_per_part) {
        column = (blockIdx.x * WARP + threadIdx.x) * N;
        first = blockIdx.y * rows_per_part + threadIdx.y;
        end = smaller(rows, (blockIdx.y + 1) * rows_per_part);
    }
};

template <unsigned N>
__device__ void load_bias(float *values, const float *bias, unsigned column, unsigned width) {
    UNROLL
    for (unsigned j = 0; j < N; j++) {
        values[j] = bias && column < width ? bias[column + j] : 0.0f;
    }
}

// Writes the sums that a block's threads hold for the columns.
template <unsigned N>
__device__ void write_sums(const float *own, float *sums, unsigned column, unsigned width) {
    __shared__ float rows[COLUMN_ROWS][WARP + 1];
    UNROLL
    for (unsigned j = 0; j < N; j++) {
        const float sum = over_rows(own[j], rows);
        if (threadIdx.y == 0 && column < width) {
            sums[column + j] = sum;
        }
        // Readers of these rows are done.
        __syncthreads();
    }
}

// ys = gelu(xs + bias), or xs + bias; without a bias it is 0.
template <class T, bool Gelu, unsigned N>
__device__ void forward(const T *xs, const float *bias, T *ys, unsigned rows, unsigned width,
                        unsigned rows_per_part) {
    const Own<N> own(rows, rows_per_part);
    if (own.column >= width) {
        return;
    }
    float b[N], values[N];
    load_bias<N>(b, bias, own.column, width);
    for (unsigned row = own.first; row < own.end; row += COLUMN_ROWS) {
        const size_t i = (size_t)row * width + own.column;
        load_columns<N>(values, xs + i);
        UNROLL
        for (unsigned j = 0; j < N; j++) {
            const float x = values[j] + b[j];
            values[j] = Gelu ? gelu(x) : x;
        }
        store_columns<N>(ys + i, values);
    }
}

// dx = grad * slope of gelu(xs + bias), and, if wanted, the sums of dx over the rows of each part.
template <class T, unsigned N>
__device__ void backward(const T *xs, const float *bias, const T *grad, T *dx, float *parts,
                         unsigned rows, unsigned width, unsigned rows_per_part) {
    const Own<N> own(rows, rows_per_part);
    float b[N], values[N], grads[N], sums[N];
    load_bias<N>(b, bias, own.column, width);
    UNROLL
    for (unsigned j = 0; j < N; j++) {
        sums[j] = 0.0f;
    }
    for (unsigned row = own.first; own.column < width && row < own.end; row += COLUMN_ROWS) {
        const size_t i = (size_t)row * width + own.column;
        load_columns<N>(values, xs + i);
        load_columns<N>(grads, grad + i);
        UNROLL
        for (unsigned j = 0; j < N; j++) {
            grads[j] *= gelu_slope(values[j] + b[j]);
            sums[j] += grads[j];
        }
        store_columns<N>(dx + i, grads);
    }
    if (parts) {
        write_sums<N>(sums, parts + (size_t)blockIdx.y * width, own.column, width);
    }
}

// The sums over the rows of each part.
template <class T, unsigned N>
__device__ void column_sums(const T *xs, float *parts, unsigned rows, unsigned width,
                            unsigned rows_per_part) {
    const Own<N> own(rows, rows_per_part);
    float values[N], sums[N];
    UNROLL
    for (unsigned j = 0; j < N; j++) {
        sums[j] = 0.0f;
    }
    for (unsigned row = own.first; own.column < width && row < own.end; row += COLUMN_ROWS) {
        load_columns<N>(values, xs + (size_t)row * width + own.column);
        UNROLL
        for (unsigned j = 0; j < N; j++) {
            sums[j] += values[j];
        }
    }
    write_sums<N>(sums, parts + (size_t)blockIdx.y * width, own.column, width);
}

#define GELU(suffix, T)                                                                            \
    extern "C" __global__ void bias_gelu_##suffix(const T *xs, const float *bias, T *ys,           \
                                                  unsigned rows, unsigned width,                   \
                                                  unsigned rows_per_part) {                        \
        width % MANY == 0 ? forward<T, true, MANY>(xs, bias, ys, rows, width, rows_per_part)       \
                          : forward<T, true, 1>(xs, bias, ys, rows, width, rows_per_part);         \
    }                                                                                              \
    extern "C" __global__ void add_bias_##suffix(const T *xs, const float *bias, T *ys,            \
                                                 unsigned rows, unsigned width,                    \
                                                 unsigned rows_per_part) {                         \
        width % MANY == 0 ? forward<T, false, MANY>(xs, bias, ys, rows, width, rows_per_part)      \
                          : forward<T, false, 1>(xs, bias, ys, rows, width, rows_per_part);        \
    }                                                                                              \
    extern "C" __global__ void bias_gelu_grad_##suffix(                                            \
        const T *xs, const float *bias, const T *grad, T *dx, float *parts, unsigned rows,         \
        unsigned width, unsigned rows_per_part) {                                                  \
        width % MANY == 0                                                                          \
            ? backward<T, MANY>(xs, bias, grad, dx, parts, rows, width, rows_per_part)             \
            : backward<T, 1>(xs, bias, grad, dx, parts, rows, width, rows_per_part);               \
    }                                                                                              \
    extern "C" __global__ void column_sums_##suffix(const T *xs, float *parts, unsigned rows,      \
                                                    unsigned width, unsigned rows_per_part) {      \
        width % MANY == 0 ? column_sums<T, MANY>(xs, parts, rows, width, rows_per_part)            \
                          : column_sums<T, 1>(xs, parts, rows, width, rows_per_part);              \
    }

GELU(f32, float)
GELU(bf16, bf16)
