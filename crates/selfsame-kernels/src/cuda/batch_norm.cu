// Batch normalisation of [batch, channels, plane], what may be added behind it, and ReLU.
//
// A block has a part of the elements of one channel, numbered through all images. Statistics are
// those of parts, each in two passes over registers, merged in a fixed order (Chan, Golub and
// LeVeque 1979): the input is read once, and nothing cancels.
//
// stats is [3, channels]: mean, 1/std, unbiased variance. affine is [2, channels]: weight, bias.

#include "device.cuh"
#include "moments.cuh"

// Values that a thread reads before it uses the first of them.
#define AT_ONCE 8u

struct Sizes {
    unsigned batch, channels, plane, per_part;
};

// The elements of a part that belong to a thread, some at a time.
struct Walk {
    unsigned number, end, image, place, step_images, step_places;
    size_t image_len, channel_start;
    unsigned plane;

    __device__ Walk(Sizes s) {
        const unsigned first = blockIdx.y * s.per_part;
        number = first + threadIdx.x;
        end = smaller(s.batch * s.plane, first + s.per_part);
        image = number / s.plane;
        place = number % s.plane;
        step_images = blockDim.x / s.plane;
        step_places = blockDim.x % s.plane;
        plane = s.plane;
        image_len = (size_t)s.channels * s.plane;
        channel_start = (size_t)blockIdx.x * s.plane;
    }

    __device__ bool goes_on() const { return number < end; }

    // Where the next values lie; how many of them there are.
    __device__ unsigned take(size_t (&at)[AT_ONCE]) {
        unsigned count = 0;
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            at[i] = image * image_len + channel_start + place;
            count += number < end;
            number += blockDim.x;
            image += step_images;
            place += step_places;
            if (place >= plane) {
                place -= plane;
                image++;
            }
        }
        return count;
    }
};

// Of all lanes, in their order.
__device__ inline Moments merged_over_warp(Moments own) {
    for (unsigned step = 1; step < WARP; step *= 2) {
        const Moments other = {__shfl_xor_sync(0xffffffffu, own.count, step),
                               __shfl_xor_sync(0xffffffffu, own.mean, step),
                               __shfl_xor_sync(0xffffffffu, own.squares, step)};
        own = threadIdx.x & step ? merged(other, own) : merged(own, other);
    }
    return own;
}

// parts[channel][part] = mean and squares.
__device__ void moments(const float *__restrict__ xs, float *parts, Sizes sizes) {
    __shared__ Moments of_warps[WARP];
    Moments own = {0.0f, 0.0f, 0.0f};
    Walk walk(sizes);
    while (walk.goes_on()) {
        size_t at[AT_ONCE];
        float values[AT_ONCE], sum = 0.0f, squares = 0.0f;
        const unsigned count = walk.take(at);
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            values[i] = i < count ? xs[at[i]] : 0.0f;
        }
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            sum += values[i];
        }
        const float mean = sum / count;
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            const float centered = values[i] - mean;
            squares += i < count ? centered * centered : 0.0f;
        }
        own = merged(own, {(float)count, mean, squares});
    }
    own = merged_over_warp(own);
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0) {
        of_warps[warp] = own;
    }
    __syncthreads();
    if (warp == 0) {
        own = {0.0f, 0.0f, 0.0f};
        if (lane < blockDim.x / WARP) {
            own = of_warps[lane];
        }
        own = merged_over_warp(own);
        if (lane == 0) {
            parts += 2 * ((size_t)blockIdx.x * gridDim.y + blockIdx.y);
            parts[0] = own.mean;
            parts[1] = own.squares;
        }
    }
}

// stats from the moments of the parts; a warp for each channel.
extern "C" __global__ void batch_norm_stats(const float *parts, float *stats, unsigned channels,
                                            unsigned len, unsigned per_part, unsigned num_parts,
                                            float eps) {
    const unsigned channel = blockIdx.x;
    Moments own = {0.0f, 0.0f, 0.0f};
    for (unsigned part = threadIdx.x; part < num_parts; part += WARP) {
        const float *of_part = parts + 2 * ((size_t)channel * num_parts + part);
        const float count = (float)smaller(per_part, len - part * per_part);
        own = merged(own, {count, of_part[0], of_part[1]});
    }
    own = merged_over_warp(own);
    if (threadIdx.x == 0) {
        stats[channel] = own.mean;
        stats[channels + channel] = 1.0f / sqrtf(own.squares / len + eps);
        stats[2 * channels + channel] = own.squares / (len - 1);
    }
}

// stats from a given mean and variance.
extern "C" __global__ void batch_norm_given(const float *mean, const float *variance, float *stats,
                                            unsigned channels, float eps) {
    const unsigned channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel < channels) {
        stats[channel] = mean[channel];
        stats[channels + channel] = 1.0f / sqrtf(variance[channel] + eps);
        stats[2 * channels + channel] = variance[channel];
    }
}

// What a block needs of its channel.
struct Channel {
    float mean, inverse_std, weight, bias, scale;

    __device__ Channel(const float *stats, const float *affine, unsigned channels) {
        const unsigned channel = blockIdx.x;
        mean = stats[channel];
        inverse_std = stats[channels + channel];
        weight = affine[channel];
        bias = affine[channels + channel];
        scale = weight * inverse_std;
    }

    __device__ float centered(float x) const { return (x - mean) * inverse_std; }

    // Rounded in the same way wherever it is computed.
    __device__ float normalized(float x) const {
        return __fadd_rn(__fmul_rn(__fsub_rn(x, mean), scale), bias);
    }
};

// ys = xs normalised, plus residual if there is one, and cut at zero if with_relu.
__device__ void apply(const float *__restrict__ xs, const float *__restrict__ residual,
                      const float *stats, const float *affine, float *__restrict__ ys, Sizes sizes,
                      unsigned with_relu) {
    const Channel channel(stats, affine, sizes.channels);
    for (Walk walk(sizes); walk.goes_on();) {
        size_t at[AT_ONCE];
        float values[AT_ONCE], added[AT_ONCE];
        const unsigned count = walk.take(at);
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            values[i] = i < count ? xs[at[i]] : 0.0f;
            added[i] = residual && i < count ? residual[at[i]] : 0.0f;
        }
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            float y = channel.normalized(values[i]);
            if (residual) {
                y += added[i];
            }
            if (i < count) {
                // A NaN is not at most zero and goes through.
                ys[at[i]] = with_relu && y <= 0.0f ? 0.0f : y;
            }
        }
    }
}

// Some values and the gradients in front of the ReLU; ys is needed only where something was added.
struct Gradients {
    size_t at[AT_ONCE];
    float xs[AT_ONCE], grads[AT_ONCE];
    unsigned count;

        __device__ Gradients(Walk &walk, const Channel &channel, const float *__restrict__ from,
                         const float *__restrict__ ys, const float *__restrict__ grad,
                         unsigned with_relu) {
        float results[AT_ONCE];
        count = walk.take(at);
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            xs[i] = i < count ? from[at[i]] : 0.0f;
            grads[i] = i < count ? grad[at[i]] : 0.0f;
            results[i] = with_relu && ys && i < count ? ys[at[i]] : 0.0f;
        }
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            const float y = ys ? results[i] : channel.normalized(xs[i]);
            grads[i] = with_relu && y <= 0.0f ? 0.0f : grads[i];
        }
    }
};

// parts[channel][part] = the share in the gradients of weight and bias.
__device__ void grad_sums(const float *__restrict__ xs, const float *__restrict__ ys,
                          const float *__restrict__ grad, const float *stats, const float *affine,
                          float *parts, Sizes sizes, unsigned with_relu) {
    const Channel channel(stats, affine, sizes.channels);
    float d_weight = 0.0f, d_bias = 0.0f;
    for (Walk walk(sizes); walk.goes_on();) {
        const Gradients some(walk, channel, xs, ys, grad, with_relu);
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            if (i < some.count) {
                d_weight += some.grads[i] * channel.centered(some.xs[i]);
                d_bias += some.grads[i];
            }
        }
    }
    d_weight = over_block<Sum>(d_weight);
    d_bias = over_block<Sum>(d_bias);
    if (threadIdx.x == 0) {
        parts += 2 * ((size_t)blockIdx.x * gridDim.y + blockIdx.y);
        parts[0] = d_weight;
        parts[1] = d_bias;
    }
}

// d_affine from the parts; a warp for each channel.
extern "C" __global__ void batch_norm_affine_grad(const float *parts, float *d_affine,
                                                  unsigned channels, unsigned num_parts) {
    const unsigned channel = blockIdx.x;
    float d_weight = 0.0f, d_bias = 0.0f;
    for (unsigned part = threadIdx.x; part < num_parts; part += WARP) {
        const float *of_part = parts + 2 * ((size_t)channel * num_parts + part);
        d_weight += of_part[0];
        d_bias += of_part[1];
    }
    d_weight = over_warp<Sum>(d_weight);
    d_bias = over_warp<Sum>(d_bias);
    if (threadIdx.x == 0) {
        d_affine[channel] = d_weight;
        d_affine[channels + channel] = d_bias;
    }
}

// The gradients of xs and, if asked for, of what was added. Statistics of the batch itself
// (of_batch) have a share in that of xs, given ones have none.
__device__ void gradient(const float *__restrict__ xs, const float *__restrict__ ys,
                         const float *__restrict__ grad, const float *stats, const float *affine,
                         const float *d_affine, float *__restrict__ dx,
                         float *__restrict__ d_residual, Sizes sizes, unsigned with_relu,
                         unsigned of_batch) {
    const Channel channel(stats, affine, sizes.channels);
    const float share = of_batch ? 1.0f / ((float)sizes.batch * sizes.plane) : 0.0f;
    const float mean_grad = d_affine[sizes.channels + blockIdx.x] * share;
    const float mean_product = d_affine[blockIdx.x] * share;
    for (Walk walk(sizes); walk.goes_on();) {
        const Gradients some(walk, channel, xs, ys, grad, with_relu);
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
            if (i < some.count) {
                const float g = some.grads[i], product = channel.centered(some.xs[i]) * mean_product;
                dx[some.at[i]] = channel.scale * (g - mean_grad - product);
                if (d_residual) {
                    d_residual[some.at[i]] = g;
                }
            }
        }
    }
}

extern "C" __global__ void batch_norm_moments(const float *xs, float *parts, unsigned batch,
                                              unsigned channels, unsigned plane,
                                              unsigned per_part) {
    moments(xs, parts, {batch, channels, plane, per_part});
}

extern "C" __global__ void batch_norm_apply(const float *xs, const float *residual,
                                            const float *stats, const float *affine, float *ys,
                                            unsigned batch, unsigned channels, unsigned plane,
                                            unsigned per_part, unsigned with_relu) {
    apply(xs, residual, stats, affine, ys, {batch, channels, plane, per_part}, with_relu);
}

extern "C" __global__ void batch_norm_grad_sums(const float *xs, const float *ys,
                                                const float *grad, const float *stats,
                                                const float *affine, float *parts, unsigned batch,
                                                unsigned channels, unsigned plane,
                                                unsigned per_part, unsigned with_relu) {
    grad_sums(xs, ys, grad, stats, affine, parts, {batch, channels, plane, per_part}, with_relu);
}

extern "C" __global__ void batch_norm_grad(const float *xs, const float *ys, const float *grad,
                                           const float *stats, const float *affine,
                                           const float *d_affine, float *dx, float *d_residual,
                                           unsigned batch, unsigned channels, unsigned plane,
                                           unsigned per_part, unsigned with_relu,
                                           unsigned of_batch) {
    gradient(xs, ys, grad, stats, affine, d_affine, dx, d_residual,
             {batch, channels, plane, per_part}, with_relu, of_batch);
}
