// Norm of all gradients, clipping, AdamW and the momentum teacher: a whole step in three launches,
// none of which the host waits for.
//
// Every operation is rounded by itself, in PyTorch's order: the same bits as on the CPU.

#include "device.cuh"

// Elements that a block updates.
#define CHUNK 8192u

// One weight: launch/update.rs writes this, word by word.
struct Weight {
    float *param;
    // Null where there is no gradient: such a weight only goes into the teacher.
    const float *grad;
    float *exp_avg;
    float *exp_avg_sq;
    // Null without a teacher.
    float *teacher;
    unsigned long long len;
    // Chunks of all weights before it.
    unsigned long long first_chunk;
    // 1 - lr·weight_decay
    float decay;
    // -lr / (1 - beta1^step)
    float minus_step_size;
    // √(1 - beta2^step)
    float bias2_sqrt;
    // 0: the gradient counts in the norm and is not applied.
    unsigned is_applied;
};

// The weight that a chunk belongs to.
__device__ inline unsigned weight_of(const Weight *weights, unsigned num_weights, unsigned chunk) {
    unsigned low = 0, high = num_weights;
    while (high - low > 1) {
        const unsigned middle = (low + high) / 2;
        if (weights[middle].first_chunk <= chunk) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

__device__ inline unsigned long long smaller_long(unsigned long long a, unsigned long long b) {
    return a < b ? a : b;
}

// squares[chunk] = the sum of the squares of a chunk of a gradient.
extern "C" __global__ void gradient_squares(const Weight *weights, float *squares,
                                            unsigned num_weights) {
    const Weight weight = weights[weight_of(weights, num_weights, blockIdx.x)];
    float sum = 0.0f;
    if (weight.grad) {
        const unsigned long long first = (blockIdx.x - weight.first_chunk) * CHUNK;
        const unsigned long long end = smaller_long(first + CHUNK, weight.len);
        for (unsigned long long i = first + threadIdx.x; i < end; i += blockDim.x) {
            sum += weight.grad[i] * weight.grad[i];
        }
    }
    sum = over_block<Sum>(sum);
    if (threadIdx.x == 0) {
        squares[blockIdx.x] = sum;
    }
}

// What a gradient of this norm is multiplied by.
__device__ inline float coefficient(double max_norm, double norm) {
    const double limit = max_norm / (norm + 1e-6);
    return max_norm > 0.0 && limit < 1.0 ? (float)limit : 1.0f;
}

// control = the global norm, whether it is finite (1 or 0), and the factor on each gradient. One
// block; mode 1 clips the global norm, 2 the norm of each weight's gradient.
extern "C" __global__ void clip_factors(const Weight *weights, const float *squares, float *control,
                                        unsigned num_weights, unsigned num_chunks, unsigned mode,
                                        float max_norm) {
    DYNAMIC_SHARED(shared);
    double *of_threads = (double *)shared;
    double total = 0.0;
    for (unsigned i = threadIdx.x; i < num_weights; i += blockDim.x) {
        const unsigned end = i + 1 < num_weights ? weights[i + 1].first_chunk : num_chunks;
        double sum = 0.0;
        for (unsigned chunk = weights[i].first_chunk; chunk < end; chunk++) {
            sum += squares[chunk];
        }
        total += sum;
        control[2 + i] = mode == 2 ? coefficient(max_norm, sqrt(sum)) : 1.0f;
    }
    of_threads[threadIdx.x] = total;
    __syncthreads();
    total = 0.0;
    for (unsigned i = 0; i < blockDim.x; i++) {
        total += of_threads[i];
    }
    const double norm = sqrt(total);
    if (mode == 1) {
        const float factor = coefficient(max_norm, norm);
        for (unsigned i = threadIdx.x; i < num_weights; i += blockDim.x) {
            control[2 + i] = factor;
        }
    }
    if (threadIdx.x == 0) {
        const float rounded = (float)norm;
        control[0] = rounded;
        // Infinity and NaN minus themselves are NaN.
        control[1] = rounded - rounded == 0.0f ? 1.0f : 0.0f;
    }
}

// One step of AdamW and then teacher = keep·teacher + take·param. Nothing moves if the norm of the
// gradients is not finite.
extern "C" __global__ void adamw_ema(const Weight *weights, const float *control,
                                     unsigned num_weights, float one_minus_beta1, float beta2,
                                     float one_minus_beta2, float eps, float keep, float take) {
    if (control[1] == 0.0f) {
        return;
    }
    const unsigned index = weight_of(weights, num_weights, blockIdx.x);
    const Weight weight = weights[index];
    const float grad_scale = control[2 + index];
    const bool moves = weight.grad && weight.is_applied;
    const unsigned long long first = (blockIdx.x - weight.first_chunk) * CHUNK;
    const unsigned long long end = smaller_long(first + CHUNK, weight.len);
    for (unsigned long long i = first + threadIdx.x; i < end; i += blockDim.x) {
        float param = weight.param[i];
        if (moves) {
            const float g = __fmul_rn(weight.grad[i], grad_scale);
            float m = weight.exp_avg[i], v = weight.exp_avg_sq[i];
            m = __fadd_rn(m, __fmul_rn(one_minus_beta1, __fsub_rn(g, m)));
            v = __fadd_rn(__fmul_rn(v, beta2), __fmul_rn(__fmul_rn(one_minus_beta2, g), g));
            const float denominator =
                __fadd_rn(__fdiv_rn(__fsqrt_rn(v), weight.bias2_sqrt), eps);
            param = __fadd_rn(__fmul_rn(param, weight.decay),
                              __fdiv_rn(__fmul_rn(weight.minus_step_size, m), denominator));
            weight.exp_avg[i] = m;
            weight.exp_avg_sq[i] = v;
            weight.param[i] = param;
        }
        if (weight.teacher) {
            const float teacher = weight.teacher[i];
            weight.teacher[i] = __fadd_rn(__fmul_rn(teacher, keep), __fmul_rn(param, take));
        }
    }
}
