// Norm of all gradients, clipping, the optimizer's rule and the momentum teacher: a whole step in
// three launches, with LARS five, none of which the host waits for.
//
// Every operation is rounded by itself, in PyTorch's order: the same bits as on the CPU, but for the
// norm, whose squares are summed here in f32 by chunks, and with it what is clipped.

#include "device.cuh"

// Elements that a block updates.
#define CHUNK 8192u

// One weight: launch/update.rs writes this, word by word.
struct Weight {
    float *param;
    // Null where there is no gradient: such a weight only goes into the teacher.
    const float *grad;
    // AdamW's first moment, or the momentum buffer.
    float *moment;
    // AdamW's second moment.
    float *exp_avg_sq;
    // Null without a teacher.
    float *teacher;
    unsigned long long len;
    // Chunks of all weights before it.
    unsigned long long first_chunk;
    // AdamW: 1 - lr·weight_decay; else weight_decay.
    float decay;
    // AdamW: -lr / (1 - beta1^step); else lr.
    float rate;
    // AdamW: √(1 - beta2^step).
    float bias2_sqrt;
    // IS_APPLIED, ADAPTS or none of them.
    unsigned flags;
    // LARS: trust coefficient.
    double eta;
};

// Without it the gradient counts in the norm and is not applied.
#define IS_APPLIED 1u
// LARS: the length of the step follows that of the parameter.
#define ADAPTS 2u

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

// The elements of a weight that this block updates.
struct Part {
    unsigned long long first, end;
};

__device__ inline Part part_of_block(const Weight &weight) {
    const unsigned long long first = (blockIdx.x - weight.first_chunk) * CHUNK;
    return {first, smaller_long(first + CHUNK, weight.len)};
}

// squares[chunk] = the sum of the squares of a chunk of a gradient.
extern "C" __global__ void gradient_squares(const Weight *weights, float *squares,
                                            unsigned num_weights) {
    const Weight weight = weights[weight_of(weights, num_weights, blockIdx.x)];
    float sum = 0.0f;
    if (weight.grad) {
        const Part part = part_of_block(weight);
        for (unsigned long long i = part.first + threadIdx.x; i < part.end; i += blockDim.x) {
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

// control = the global norm, whether weights move (1 or 0): it is finite and what allowed points to,
// if anything, is not 0; and the factor on each gradient. One block; mode 1 clips the global norm, 2
// the norm of each weight's gradient.
extern "C" __global__ void clip_factors(const Weight *weights, const float *squares,
                                        const float *allowed, float *control, unsigned num_weights,
                                        unsigned num_chunks, unsigned mode, float max_norm) {
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
    // Where the sum is more than an f32 holds, the norm is infinite: multi_tensor::norm_of_squares.
    const float rounded = (float)total;
    // Infinity and NaN minus themselves are NaN.
    const bool is_finite = rounded - rounded == 0.0f;
    const double norm = sqrt(total);
    if (mode == 1) {
        const float factor = coefficient(max_norm, norm);
        for (unsigned i = threadIdx.x; i < num_weights; i += blockDim.x) {
            control[2 + i] = factor;
        }
    }
    if (threadIdx.x == 0) {
        control[0] = is_finite ? (float)norm : rounded;
        const bool is_allowed = !allowed || allowed[0] != 0.0f;
        control[1] = is_finite && is_allowed ? 1.0f : 0.0f;
    }
}

__device__ inline bool moves(const Weight &weight) {
    return weight.grad && weight.flags & IS_APPLIED;
}

// What element i of a weight adds to its momentum buffer before the trust ratio.
__device__ inline float decayed(const Weight &weight, unsigned long long i, float grad_scale) {
    return __fadd_rn(__fmul_rn(weight.grad[i], grad_scale),
                     __fmul_rn(weight.decay, weight.param[i]));
}

// teacher = keep·teacher + take·param
__device__ inline void follow(const Weight &weight, unsigned long long i, float param, float keep,
                              float take) {
    if (weight.teacher) {
        const float teacher = weight.teacher[i];
        weight.teacher[i] = __fadd_rn(__fmul_rn(teacher, keep), __fmul_rn(param, take));
    }
}

// One step of AdamW, after which the teacher follows. Nothing moves if the norm of the gradients is
// not finite.
extern "C" __global__ void adamw_ema(const Weight *weights, const float *control,
                                     unsigned num_weights, float one_minus_beta1, float beta2,
                                     float one_minus_beta2, float eps, float keep, float take) {
    if (control[1] == 0.0f) {
        return;
    }
    const unsigned index = weight_of(weights, num_weights, blockIdx.x);
    const Weight weight = weights[index];
    const float grad_scale = control[2 + index];
    const Part part = part_of_block(weight);
    for (unsigned long long i = part.first + threadIdx.x; i < part.end; i += blockDim.x) {
        float param = weight.param[i];
        if (moves(weight)) {
            const float g = __fmul_rn(weight.grad[i], grad_scale);
            float m = weight.moment[i], v = weight.exp_avg_sq[i];
            m = __fadd_rn(m, __fmul_rn(one_minus_beta1, __fsub_rn(g, m)));
            v = __fadd_rn(__fmul_rn(v, beta2), __fmul_rn(__fmul_rn(one_minus_beta2, g), g));
            const float denominator =
                __fadd_rn(__fdiv_rn(__fsqrt_rn(v), weight.bias2_sqrt), eps);
            param = __fadd_rn(__fmul_rn(param, weight.decay),
                              __fdiv_rn(__fmul_rn(weight.rate, m), denominator));
            weight.moment[i] = m;
            weight.exp_avg_sq[i] = v;
            weight.param[i] = param;
        }
        follow(weight, i, param, keep, take);
    }
}

// squares[2·chunk] and the one after it = the sums of the squares of a parameter and of what it
// adds to its buffer, over two chunks, of which the first counts: in f64 and in the order of the
// CPU, whose sums have 32 lanes and whose chunks are as long as two of these. A warp for each sum.
extern "C" __global__ void lars_squares(const Weight *weights, const float *control,
                                        double *squares, unsigned num_weights) {
    const unsigned index = weight_of(weights, num_weights, blockIdx.x);
    const Weight weight = weights[index];
    const bool is_second = (blockIdx.x - weight.first_chunk) % 2 != 0;
    if (control[1] == 0.0f || is_second || !moves(weight) || !(weight.flags & ADAPTS)) {
        return;
    }
    __shared__ double of_lanes[2 * WARP];
    const bool of_param = threadIdx.x < WARP;
    const unsigned lane = threadIdx.x % WARP;
    const float grad_scale = control[2 + index];
    const unsigned long long first = part_of_block(weight).first;
    const unsigned long long end = smaller_long(first + 2 * CHUNK, weight.len);
    const unsigned long long whole = first + (end - first) / WARP * WARP;
    double sum = 0.0;
    for (unsigned long long i = first + lane; i < whole; i += WARP) {
        const double x = of_param ? weight.param[i] : decayed(weight, i, grad_scale);
        // The product of two f32 is exact in f64.
        sum += x * x;
    }
    of_lanes[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0) {
        sum = 0.0;
        for (unsigned i = 0; i < WARP; i++) {
            sum += of_lanes[threadIdx.x + i];
        }
        for (unsigned long long i = whole; i < end; i++) {
            const double x = of_param ? weight.param[i] : decayed(weight, i, grad_scale);
            sum += x * x;
        }
        squares[2 * blockIdx.x + (of_param ? 0 : 1)] = sum;
    }
}

// trust[weight] = eta·|param| / |update|, or 1 if either is 0 or the weight does not adapt.
extern "C" __global__ void lars_trust(const Weight *weights, const float *control,
                                      const double *squares, float *trust, unsigned num_weights) {
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    if (control[1] == 0.0f || index >= num_weights) {
        return;
    }
    const Weight weight = weights[index];
    double of_param = 0.0, of_update = 0.0;
    if (moves(weight) && weight.flags & ADAPTS) {
        const double *own = squares + 2 * weight.first_chunk;
        for (unsigned long long chunk = 0; chunk * CHUNK < weight.len; chunk += 2) {
            of_param += own[2 * chunk];
            of_update += own[2 * chunk + 1];
        }
    }
    const bool is_given = of_param > 0.0 && of_update > 0.0;
    trust[index] = is_given ? (float)(weight.eta * sqrt(of_param) / sqrt(of_update)) : 1.0f;
}

// One step with a momentum buffer, after which the teacher follows: SGD, or LARS if there are trust
// ratios. Nothing moves if the norm of the gradients is not finite.
extern "C" __global__ void momentum_ema(const Weight *weights, const float *control,
                                        const float *trust, unsigned num_weights, float momentum,
                                        float keep, float take) {
    if (control[1] == 0.0f) {
        return;
    }
    const unsigned index = weight_of(weights, num_weights, blockIdx.x);
    const Weight weight = weights[index];
    const float grad_scale = control[2 + index];
    const float ratio = trust ? trust[index] : 1.0f;
    const Part part = part_of_block(weight);
    for (unsigned long long i = part.first + threadIdx.x; i < part.end; i += blockDim.x) {
        float param = weight.param[i];
        if (moves(weight)) {
            const float update = __fmul_rn(decayed(weight, i, grad_scale), ratio);
            const float m = __fadd_rn(__fmul_rn(weight.moment[i], momentum), update);
            param = __fsub_rn(param, __fmul_rn(weight.rate, m));
            weight.moment[i] = m;
            weight.param[i] = param;
        }
        follow(weight, i, param, keep, take);
    }
}
