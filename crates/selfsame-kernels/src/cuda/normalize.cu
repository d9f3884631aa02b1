// Rows brought to a length: one warp for each, f32 inside.

#include "device.cuh"

// ys = length * xs / max(|xs|, eps); without lengths they are 1.
template <class T>
__device__ void forward(const float *xs, const float *lengths, T *ys, unsigned rows, unsigned width,
                        float eps) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    xs += (size_t)row * width;
    ys += (size_t)row * width;
    float squares = 0.0f;
    for (unsigned i = lane; i < width; i += WARP) {
        squares += xs[i] * xs[i];
    }
    const float norm = sqrtf(over_warp<Sum>(squares));
    const float factor = (lengths ? lengths[row] : 1.0f) / (norm > eps ? norm : eps);
    for (unsigned i = lane; i < width; i += WARP) {
        ys[i] = from_f32<T>(xs[i] * factor);
    }
}

// The gradient of xs: what goes along a row is lost, unless eps holds it.
__device__ void backward(const float *xs, const float *lengths, const float *grad, float *dx,
                         unsigned rows, unsigned width, float eps) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    xs += (size_t)row * width;
    grad += (size_t)row * width;
    dx += (size_t)row * width;
    float squares = 0.0f, dot = 0.0f;
    for (unsigned i = lane; i < width; i += WARP) {
        squares += xs[i] * xs[i];
        dot += xs[i] * grad[i];
    }
    squares = over_warp<Sum>(squares);
    dot = over_warp<Sum>(dot);
    const float norm = sqrtf(squares);
    const float factor = (lengths ? lengths[row] : 1.0f) / (norm > eps ? norm : eps);
    const float along = norm > eps ? dot / squares : 0.0f;
    for (unsigned i = lane; i < width; i += WARP) {
        dx[i] = factor * (grad[i] - xs[i] * along);
    }
}

extern "C" __global__ void normalize_f32(const float *xs, const float *lengths, float *ys,
                                         unsigned rows, unsigned width, float eps) {
    forward(xs, lengths, ys, rows, width, eps);
}

extern "C" __global__ void normalize_bf16(const float *xs, const float *lengths, bf16 *ys,
                                          unsigned rows, unsigned width, float eps) {
    forward(xs, lengths, ys, rows, width, eps);
}

extern "C" __global__ void normalize_grad(const float *xs, const float *lengths, const float *grad,
                                          float *dx, unsigned rows, unsigned width, float eps) {
    backward(xs, lengths, grad, dx, rows, width, eps);
}
