// Max pooling that remembers which element of each window won.

#include "device.cuh"

// ys = the largest value of each window, winners its place within the window, row by row. The
// first of equal values wins, and a NaN over everything. A block has some windows of one plane.
template <class T>
__device__ void forward(const T *xs, T *ys, unsigned char *winners, unsigned h, unsigned w,
                        unsigned h_out, unsigned w_out, unsigned kernel, unsigned stride,
                        unsigned padding) {
    const unsigned window = blockIdx.y * blockDim.x + threadIdx.x;
    if (window >= h_out * w_out) {
        return;
    }
    xs += (size_t)blockIdx.x * h * w;
    const unsigned y = window / w_out * stride, x = window % w_out * stride;
    float best = negative_infinity();
    unsigned winner = kernel * kernel;
    for (unsigned i = 0; i < kernel; i++) {
        for (unsigned j = 0; j < kernel; j++) {
            // What lies before the plane wraps around to a large number.
            const unsigned row = y + i - padding, col = x + j - padding;
            if (row >= h || col >= w) {
                continue;
            }
            const float value = to_f32(xs[(size_t)row * w + col]);
            // The first element within the plane also if all are minus infinity.
            if (value > best || value != value || winner == kernel * kernel) {
                best = value;
                winner = i * kernel + j;
            }
        }
    }
    const size_t out = (size_t)blockIdx.x * h_out * w_out + window;
    ys[out] = from_f32<T>(best);
    winners[out] = (unsigned char)winner;
}

// Each element gets the gradients of the windows that it won, in their order.
template <class T>
__device__ void backward(const unsigned char *winners, const T *grad, T *dx, unsigned h, unsigned w,
                         unsigned h_out, unsigned w_out, unsigned kernel, unsigned stride,
                         unsigned padding) {
    const unsigned place = blockIdx.y * blockDim.x + threadIdx.x;
    if (place >= h * w) {
        return;
    }
    // Places within the padded plane.
    const unsigned y = place / w + padding, x = place % w + padding;
    const unsigned first_row = y < kernel ? 0 : (y - kernel) / stride + 1;
    const unsigned first_col = x < kernel ? 0 : (x - kernel) / stride + 1;
    const unsigned end_row = smaller(h_out, y / stride + 1);
    const unsigned end_col = smaller(w_out, x / stride + 1);
    winners += (size_t)blockIdx.x * h_out * w_out;
    grad += (size_t)blockIdx.x * h_out * w_out;
    float sum = 0.0f;
    for (unsigned row = first_row; row < end_row; row++) {
        for (unsigned col = first_col; col < end_col; col++) {
            const size_t window = (size_t)row * w_out + col;
            if (winners[window] == (y - row * stride) * kernel + (x - col * stride)) {
                sum += to_f32(grad[window]);
            }
        }
    }
    dx[(size_t)blockIdx.x * h * w + place] = from_f32<T>(sum);
}

#define MAX_POOL(suffix, T)                                                                        \
    extern "C" __global__ void max_pool_##suffix(                                                  \
        const T *xs, T *ys, unsigned char *winners, unsigned h, unsigned w, unsigned h_out,        \
        unsigned w_out, unsigned kernel, unsigned stride, unsigned padding) {                      \
        forward(xs, ys, winners, h, w, h_out, w_out, kernel, stride, padding);                     \
    }                                                                                              \
    extern "C" __global__ void max_pool_grad_##suffix(                                             \
        const unsigned char *winners, const T *grad, T *dx, unsigned h, unsigned w,                \
        unsigned h_out, unsigned w_out, unsigned kernel, unsigned stride, unsigned padding) {      \
        backward(winners, grad, dx, h, w, h_out, w_out, kernel, stride, padding);                  \
    }

MAX_POOL(f32, float)
MAX_POOL(bf16, bf16)
