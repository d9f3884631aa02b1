// Softmax over rows of any length, and the DINO loss on it: f32 inside, one block for each row.

#include "device.cuh"

// The largest element, and the sum of exp(element - largest), in one pass.
struct Normalizer {
    float max, sum;

    __device__ Normalizer() : max(negative_infinity()), sum(0.0f) {}

    __device__ void add(float x) {
        if (x > max) {
            sum = sum * expf(max - x) + 1.0f;
            max = x;
        } else {
            // Minus infinity may come first, and may be all there is.
            sum += x == max ? 1.0f : expf(x - max);
        }
    }

    // The same for all that the block's threads have added.
    __device__ void over_whole_block() {
        const float largest = over_block<Max>(max);
        // A thread that added nothing has a maximum of minus infinity and a sum of 0.
        sum = over_block<Sum>(sum == 0.0f ? 0.0f : sum * expf(max - largest));
        max = largest;
    }
};

// ys = softmax((xs - center) * scale), or its logarithm; without a center it is 0.
template <class T>
__device__ void forward(const T *xs, const float *center, T *ys, unsigned width, float scale,
                        unsigned is_log) {
    xs += (size_t)blockIdx.x * width;
    ys += (size_t)blockIdx.x * width;
    Normalizer row;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        row.add((to_f32(xs[i]) - (center ? center[i] : 0.0f)) * scale);
    }
    row.over_whole_block();
    const float inverse = 1.0f / row.sum, log_sum = logf(row.sum);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float x = (to_f32(xs[i]) - (center ? center[i] : 0.0f)) * scale - row.max;
        ys[i] = from_f32<T>(is_log ? x - log_sum : expf(x) * inverse);
    }
}

// dx from the result ys of the forward pass, for a scale of 1.
template <class T>
__device__ void backward(const T *ys, const T *grad, T *dx, unsigned width, unsigned is_log) {
    ys += (size_t)blockIdx.x * width;
    grad += (size_t)blockIdx.x * width;
    dx += (size_t)blockIdx.x * width;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        sum += to_f32(grad[i]) * (is_log ? 1.0f : to_f32(ys[i]));
    }
    sum = over_block<Sum>(sum);
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float y = to_f32(ys[i]), g = to_f32(grad[i]);
        dx[i] = from_f32<T>(is_log ? g - expf(y) * sum : y * (g - sum));
    }
}

// Per row of the student: its loss against the teacher's rows of other views of the same image, and
// the gradient, factor * (sum of q * softmax - q), if it is wanted.
template <class T>
__device__ void cross_entropy(const T *student, const float *teacher, T *grad, float *losses,
                              unsigned width, unsigned batch, unsigned first_row,
                              float inverse_temp, float factor) {
    const unsigned row = first_row + blockIdx.x, view = row / batch, image = row % batch;
    const float *q0 = view == 0 ? 0 : teacher + (size_t)image * width;
    const float *q1 = view == 1 ? 0 : teacher + ((size_t)batch + image) * width;
    student += (size_t)blockIdx.x * width;
    Normalizer normalizer;
    float q_sum = 0.0f, dot = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const float z = to_f32(student[i]) * inverse_temp;
        const float q = (q0 ? q0[i] : 0.0f) + (q1 ? q1[i] : 0.0f);
        normalizer.add(z);
        q_sum += q;
        dot += q * z;
    }
    normalizer.over_whole_block();
    q_sum = over_block<Sum>(q_sum);
    dot = over_block<Sum>(dot);
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = q_sum * (normalizer.max + logf(normalizer.sum)) - dot;
    }
    if (grad) {
        grad += (size_t)blockIdx.x * width;
        const float weight = q_sum / normalizer.sum;
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
            const float z = to_f32(student[i]) * inverse_temp;
            const float q = (q0 ? q0[i] : 0.0f) + (q1 ? q1[i] : 0.0f);
            grad[i] = from_f32<T>(factor * (weight * expf(z - normalizer.max) - q));
        }
    }
}

// ys = xs times a number that lies on the device.
template <class T>
__device__ void scaled(const T *xs, const float *factor, T *ys, unsigned len) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) {
        ys[i] = from_f32<T>(to_f32(xs[i]) * *factor);
    }
}

#define SOFTMAX(suffix, T)                                                                         \
    extern "C" __global__ void softmax_##suffix(const T *xs, const float *center, T *ys,           \
                                                unsigned width, float scale, unsigned is_log) {    \
        forward(xs, center, ys, width, scale, is_log);                                             \
    }                                                                                              \
    extern "C" __global__ void softmax_grad_##suffix(const T *ys, const T *grad, T *dx,            \
                                                     unsigned width, unsigned is_log) {            \
        backward(ys, grad, dx, width, is_log);                                                     \
    }                                                                                              \
    extern "C" __global__ void cross_entropy_##suffix(                                             \
        const T *student, const float *teacher, T *grad, float *losses, unsigned width,            \
        unsigned batch, unsigned first_row, float inverse_temp, float factor) {                    \
        cross_entropy(student, teacher, grad, losses, width, batch, first_row, inverse_temp,       \
                      factor);                                                                     \
    }                                                                                              \
    extern "C" __global__ void scaled_##suffix(const T *xs, const float *factor, T *ys,            \
                                               unsigned len) {                                     \
        scaled(xs, factor, ys, len);                                                               \
    }

SOFTMAX(f32, float)
SOFTMAX(bf16, bf16)
