// ReLU whose gradient at zero is zero; a NaN is not at most zero and goes through.

#include "device.cuh"

template <class T> __device__ inline bool is_cut(T x) { return to_f32(x) <= 0.0f; }

template <class T> __device__ void forward(const T *xs, T *ys, unsigned len) {
    const unsigned step = gridDim.x * blockDim.x;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < len; i += step) {
        ys[i] = is_cut(xs[i]) ? from_f32<T>(0.0f) : xs[i];
    }
}

template <class T> __device__ void backward(const T *ys, const T *grad, T *dx, unsigned len) {
    const unsigned step = gridDim.x * blockDim.x;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < len; i += step) {
        dx[i] = is_cut(ys[i]) ? from_f32<T>(0.0f) : grad[i];
    }
}

#define RELU(suffix, T)                                                                            \
    extern "C" __global__ void relu_##suffix(const T *xs, T *ys, unsigned len) {                   \
        forward(xs, ys, len);                                                                      \
    }                                                                                              \
    extern "C" __global__ void relu_grad_##suffix(const T *ys, const T *grad, T *dx,               \
                                                  unsigned len) {                                  \
        backward(ys, grad, dx, len);                                                               \
    }

RELU(f32, float)
RELU(bf16, bf16)
