// Batch normalisation of rows [rows, channels] with ReLU behind it, and what is added before that:
// nothing, other rows, or other rows normalised.
//
// A thread has eight channels of some rows of a part, a block of [x, y] threads y rows at a time.
// stats is [3, channels]: mean, 1/std, unbiased variance.

#include "eight.cuh"
#include "moments.cuh"

// Rows whose values a thread reads before it uses the first of them.
#define AT_ONCE 4u
// The most threads of a block.
#define ROW_THREADS 256u
// Threads that share the parts of a channel.
#define PART_LANES 32u

struct Rows {
    unsigned count, channels, per_part;
};

// Where a thread stands.
struct Place {
    unsigned channel, channels, first, end, step;
    bool is_inside;

    __device__ Place(Rows s) {
        channel = EIGHT * (blockIdx.x * blockDim.x + threadIdx.x);
        channels = s.channels;
        is_inside = channel < channels;
        first = blockIdx.y * s.per_part;
        end = smaller(s.count, first + s.per_part);
        step = blockDim.y;
    }

    __device__ size_t of(unsigned row) const { return (size_t)row * channels + channel; }
};

// What eight channels are normalised with.
struct Norm {
    float mean[EIGHT], scale[EIGHT], bias[EIGHT];

    __device__ Norm(const float *stats, const float *weight, const float *bias_of, unsigned channel,
                    unsigned channels) {
        UNROLL
        for (unsigned c = 0; c < EIGHT; c++) {
            mean[c] = stats[channel + c];
            scale[c] = weight[channel + c] * stats[channels + channel + c];
            bias[c] = bias_of[channel + c];
        }
    }

    // Rounded in the same way wherever it is computed.
    __device__ float of(float x, unsigned c) const {
        return __fadd_rn(__fmul_rn(__fsub_rn(x, mean[c]), scale[c]), bias[c]);
    }
};

// Adds up what the rows of a block hold of each channel, in their order, and hands every sum over
// with its channel. `sums` has room for EIGHT * ROW_THREADS.
template <class F>
__device__ void over_rows_of_block(const float (&own)[EIGHT], float *sums, unsigned channels, F &&to) {
    const unsigned width = EIGHT * blockDim.x, thread = threadIdx.y * blockDim.x + threadIdx.x;
    // Readers of the last sums are done.
    __syncthreads();
    UNROLL
    for (unsigned c = 0; c < EIGHT; c++) {
        sums[threadIdx.y * width + EIGHT * threadIdx.x + c] = own[c];
    }
    __syncthreads();
    for (unsigned c = thread; c < width; c += blockDim.x * blockDim.y) {
        float sum = 0.0f;
        for (unsigned y = 0; y < blockDim.y; y++) {
            sum += sums[y * width + c];
        }
        if (blockIdx.x * width + c < channels) {
            to(blockIdx.x * width + c, sum);
        }
    }
}

// parts[part] = [2, channels]: mean, and the sum of squared distances from it. Distances are taken
// from the first row of a part, so that nothing cancels.
template <class T> __device__ void moments(const T *__restrict__ xs, float *parts, Rows s) {
    __shared__ float sums[EIGHT * ROW_THREADS];
    const Place place(s);
    float sum[EIGHT] = {}, squares[EIGHT] = {};
    if (place.is_inside) {
        const T *own = xs + place.channel;
        const Eight origin = load_eight(own + (size_t)place.first * s.channels);
        for (unsigned row = place.first + threadIdx.y; row < place.end;
             row += AT_ONCE * place.step) {
            RawEight<T> raw[AT_ONCE];
            UNROLL
            for (unsigned i = 0; i < AT_ONCE; i++) {
                const unsigned at = row + i * place.step;
                // Beyond the end there is the first row again, which adds nothing.
                raw[i] = load_raw(own + (size_t)(at < place.end ? at : place.first) * s.channels);
            }
            UNROLL
            for (unsigned i = 0; i < AT_ONCE; i++) {
                const Eight values = values_of(raw[i]);
                UNROLL
                for (unsigned c = 0; c < EIGHT; c++) {
                    const float apart = values.at[c] - origin.at[c];
                    sum[c] += apart;
                    squares[c] += apart * apart;
                }
            }
        }
    }
    parts += 2 * (size_t)blockIdx.y * s.channels;
    const float count = (float)(place.end - place.first);
    const T *origin = xs + (size_t)place.first * s.channels;
    over_rows_of_block(sum, sums, s.channels, [&](unsigned channel, float total) {
        parts[channel] = total / count;
    });
    // The same thread has the same channels.
    over_rows_of_block(squares, sums, s.channels, [&](unsigned channel, float total) {
        const float mean = parts[channel];
        parts[s.channels + channel] = total - count * mean * mean;
        parts[channel] = to_f32(origin[channel]) + mean;
    });
}

// stats from the moments of the parts; a block of 32 x PART_LANES threads has 32 channels.
extern "C" __global__ void row_norm_stats(const float *parts, float *stats, unsigned rows,
                                          unsigned channels, unsigned per_part, unsigned num_parts,
                                          float eps) {
    __shared__ Moments of_lanes[PART_LANES][WARP];
    const unsigned channel = blockIdx.x * WARP + threadIdx.x;
    Moments own = {0.0f, 0.0f, 0.0f};
    if (channel < channels) {
        for (unsigned part = threadIdx.y; part < num_parts; part += PART_LANES) {
            const float *of_part = parts + 2 * (size_t)part * channels + channel;
            const float count = (float)smaller(per_part, rows - part * per_part);
            own = merged(own, {count, of_part[0], of_part[channels]});
        }
    }
    of_lanes[threadIdx.y][threadIdx.x] = own;
    __syncthreads();
    if (threadIdx.y == 0 && channel < channels) {
        for (unsigned lane = 1; lane < PART_LANES; lane++) {
            own = merged(own, of_lanes[lane][threadIdx.x]);
        }
        stats[channel] = own.mean;
        stats[channels + channel] = 1.0f / sqrtf(own.squares / rows + eps);
        stats[2 * channels + channel] = own.squares / (rows - 1);
    }
}

// ys = relu(norm(xs) + added), where `added` is nothing, rows, or, if they have a norm of their own,
// rows that are normalised.
template <bool HAVE_NORM, class T>
__device__ void apply(const T *__restrict__ xs, const float *stats, const float *weight,
                      const float *bias, const T *__restrict__ added, const float *added_stats,
                      const float *added_weight, const float *added_bias, T *__restrict__ ys,
                      Rows s) {
    const Place place(s);
    if (!place.is_inside) {
        return;
    }
    const Norm norm(stats, weight, bias, place.channel, s.channels);
    const Norm of_added(HAVE_NORM ? added_stats : stats, HAVE_NORM ? added_weight : weight,
                        HAVE_NORM ? added_bias : bias, place.channel, s.channels);
    for (unsigned first = place.first + threadIdx.y; first < place.end;
         first += AT_ONCE * place.step) {
        RawEight<T> raw[AT_ONCE] = {}, raw_added[AT_ONCE] = {};
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            const unsigned row = first + i * place.step;
            if (row < place.end) {
                raw[i] = load_raw(xs + place.of(row));
                if (added) {
                    raw_added[i] = load_raw(added + place.of(row));
                }
            }
        }
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            const unsigned row = first + i * place.step;
            if (row < place.end) {
                Eight ys_of_row = values_of(raw[i]);
                const Eight others = values_of(raw_added[i]);
                UNROLL
                for (unsigned c = 0; c < EIGHT; c++) {
                    float y = norm.of(ys_of_row.at[c], c);
                    if (added) {
                        y += HAVE_NORM ? of_added.of(others.at[c], c) : others.at[c];
                    }
                    // A NaN is not at most zero and goes through.
                    ys_of_row.at[c] = y <= 0.0f ? 0.0f : y;
                }
                store_eight(ys + place.of(row), ys_of_row);
            }
        }
    }
}

// parts[part] = [3, channels]: sums of the gradients in front of the ReLU, of these times the
// normalised values, and, if what was added has a norm, times those of that. With the results `ys`
// the gradients are written back as they are in front of the ReLU; without, nothing was added, and
// what the ReLU took is computed again.
template <bool HAVE_NORM, class T>
__device__ void grad_sums(const T *__restrict__ xs, const float *stats, const float *weight,
                          const float *bias, const T *__restrict__ ys, T *grad,
                          const T *__restrict__ added, const float *added_stats, float *parts,
                          Rows s) {
    __shared__ float sums[EIGHT * ROW_THREADS];
    const Place place(s);
    float sum[EIGHT] = {}, products[EIGHT] = {}, of_added[EIGHT] = {};
    if (place.is_inside) {
        const Norm norm(stats, weight, bias, place.channel, s.channels);
        const float *added_means = added_stats + place.channel;
        for (unsigned first = place.first + threadIdx.y; first < place.end;
             first += AT_ONCE * place.step) {
            RawEight<T> raw[AT_ONCE] = {}, raw_grads[AT_ONCE] = {}, results[AT_ONCE] = {};
            RawEight<T> raw_added[AT_ONCE] = {};
            UNROLL
            for (unsigned i = 0; i < AT_ONCE; i++) {
                const unsigned row = first + i * place.step;
                if (row < place.end) {
                    raw[i] = load_raw(xs + place.of(row));
                    raw_grads[i] = load_raw((const T *)grad + place.of(row));
                    if (ys) {
                        results[i] = load_raw(ys + place.of(row));
                    }
                    if (HAVE_NORM) {
                        raw_added[i] = load_raw(added + place.of(row));
                    }
                }
            }
            UNROLL
            for (unsigned i = 0; i < AT_ONCE; i++) {
                const unsigned row = first + i * place.step;
                const Eight values = values_of(raw[i]), others = values_of(raw_added[i]);
                const Eight of_row = values_of(results[i]);
                Eight grads = values_of(raw_grads[i]);
                UNROLL
                for (unsigned c = 0; c < EIGHT; c++) {
                    const float y = ys ? of_row.at[c] : norm.of(values.at[c], c);
                    const float g = y <= 0.0f ? 0.0f : grads.at[c];
                    grads.at[c] = g;
                    sum[c] += g;
                    products[c] += g * (values.at[c] - norm.mean[c]);
                    if (HAVE_NORM) {
                        of_added[c] += g * (others.at[c] - added_means[c]);
                    }
                }
                if (ys && row < place.end) {
                    store_eight(grad + place.of(row), grads);
                }
            }
        }
    }
    parts += 3 * (size_t)blockIdx.y * s.channels;
    over_rows_of_block(sum, sums, s.channels,
                       [&](unsigned channel, float total) { parts[channel] = total; });
    over_rows_of_block(products, sums, s.channels, [&](unsigned channel, float total) {
        parts[s.channels + channel] = total * stats[s.channels + channel];
    });
    if (HAVE_NORM) {
        over_rows_of_block(of_added, sums, s.channels, [&](unsigned channel, float total) {
            parts[2 * s.channels + channel] = total * added_stats[s.channels + channel];
        });
    }
}

// sums [3, channels], or the first `num_sums` of them, from the parts: the gradients of the bias
// and of the weight, and of the weight of what was added.
extern "C" __global__ void row_norm_affine_grad(const float *parts, float *sums, unsigned channels,
                                                unsigned num_parts, unsigned num_sums) {
    __shared__ float of_lanes[PART_LANES][WARP];
    const unsigned channel = blockIdx.x * WARP + threadIdx.x;
    for (unsigned which = 0; which < num_sums; which++) {
        float own = 0.0f;
        if (channel < channels) {
            for (unsigned part = threadIdx.y; part < num_parts; part += PART_LANES) {
                own += parts[(3 * (size_t)part + which) * channels + channel];
            }
        }
        // Readers of the last sum are done.
        __syncthreads();
        of_lanes[threadIdx.y][threadIdx.x] = own;
        __syncthreads();
        if (threadIdx.y == 0 && channel < channels) {
            for (unsigned lane = 1; lane < PART_LANES; lane++) {
                own += of_lanes[lane][threadIdx.x];
            }
            sums[which * channels + channel] = own;
        }
    }
}

// What makes the gradient of eight channels: dx = scale·(g − mean(g) − x̂·mean(g·x̂)).
struct Back {
    float mean[EIGHT], scale[EIGHT], of_centered[EIGHT], mean_grad[EIGHT];

    __device__ Back(const float *stats, const float *weight, const float *grads,
                    const float *products, unsigned rows, unsigned channel, unsigned channels) {
        const float share = 1.0f / (float)rows;
        UNROLL
        for (unsigned c = 0; c < EIGHT; c++) {
            const float inverse_std = stats[channels + channel + c];
            mean[c] = stats[channel + c];
            scale[c] = weight[channel + c] * inverse_std;
            of_centered[c] = products[channel + c] * share * inverse_std;
            mean_grad[c] = grads[channel + c] * share;
        }
    }

    __device__ float of(float g, float x, unsigned c) const {
        return scale[c] * (g - mean_grad[c] - (x - mean[c]) * of_centered[c]);
    }
};

// The gradients of xs and, if that has a norm, of what was added. `grad` is the one in front of the
// ReLU if `is_masked`, else the one behind it; either result may take its place.
template <bool HAVE_NORM, class T>
__device__ void gradient(const T *__restrict__ xs, const float *stats, const float *weight,
                         const float *bias, const T *grad, const float *sums, T *dx,
                         const T *__restrict__ added, const float *added_stats,
                         const float *added_weight, T *d_added, Rows s, unsigned is_masked) {
    const Place place(s);
    if (!place.is_inside) {
        return;
    }
    const unsigned channels = s.channels;
    const Norm norm(stats, weight, bias, place.channel, channels);
    const Back back(stats, weight, sums, sums + channels, s.count, place.channel, channels);
    const Back of_added(HAVE_NORM ? added_stats : stats, HAVE_NORM ? added_weight : weight, sums,
                        sums + (HAVE_NORM ? 2 : 1) * channels, s.count, place.channel, channels);
    for (unsigned first = place.first + threadIdx.y; first < place.end;
         first += AT_ONCE * place.step) {
        RawEight<T> raw[AT_ONCE] = {}, raw_grads[AT_ONCE] = {}, raw_added[AT_ONCE] = {};
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            const unsigned row = first + i * place.step;
            if (row < place.end) {
                raw[i] = load_raw(xs + place.of(row));
                raw_grads[i] = load_raw(grad + place.of(row));
                if (HAVE_NORM) {
                    raw_added[i] = load_raw(added + place.of(row));
                }
            }
        }
        UNROLL
        for (unsigned i = 0; i < AT_ONCE; i++) {
            const unsigned row = first + i * place.step;
            if (row < place.end) {
                const Eight values = values_of(raw[i]), grads = values_of(raw_grads[i]);
                Eight own, other = values_of(raw_added[i]);
                UNROLL
                for (unsigned c = 0; c < EIGHT; c++) {
                    const float x = values.at[c];
                    const bool passes = is_masked || !(norm.of(x, c) <= 0.0f);
                    const float g = passes ? grads.at[c] : 0.0f;
                    own.at[c] = back.of(g, x, c);
                    if (HAVE_NORM) {
                        other.at[c] = of_added.of(g, other.at[c], c);
                    }
                }
                store_eight(dx + place.of(row), own);
                if (HAVE_NORM) {
                    store_eight(d_added + place.of(row), other);
                }
            }
        }
    }
}

#define ROW_NORM(name, suffix, T, HAVE_NORM)                                                       \
    extern "C" __global__ void name##_relu_##suffix(                                               \
        const T *xs, const float *stats, const float *weight, const float *bias, const T *added,   \
        const float *added_stats, const float *added_weight, const float *added_bias, T *ys,       \
        unsigned rows, unsigned channels, unsigned per_part) {                                     \
        apply<HAVE_NORM>(xs, stats, weight, bias, added, added_stats, added_weight, added_bias,    \
                         ys, {rows, channels, per_part});                                          \
    }                                                                                              \
    extern "C" __global__ void name##_grad_sums_##suffix(                                          \
        const T *xs, const float *stats, const float *weight, const float *bias, const T *ys,      \
        T *grad, const T *added, const float *added_stats, float *parts, unsigned rows,            \
        unsigned channels, unsigned per_part) {                                                    \
        grad_sums<HAVE_NORM>(xs, stats, weight, bias, ys, grad, added, added_stats, parts,         \
                             {rows, channels, per_part});                                          \
    }                                                                                              \
    extern "C" __global__ void name##_grad_##suffix(                                               \
        const T *xs, const float *stats, const float *weight, const float *bias, const T *grad,    \
        const float *sums, T *dx, const T *added, const float *added_stats,                        \
        const float *added_weight, T *d_added, unsigned rows, unsigned channels,                   \
        unsigned per_part, unsigned is_masked) {                                                   \
        gradient<HAVE_NORM>(xs, stats, weight, bias, grad, sums, dx, added, added_stats,           \
                            added_weight, d_added, {rows, channels, per_part}, is_masked);         \
    }

// One norm, and two whose results are added up.
ROW_NORM(row_norm, f32, float, false)
ROW_NORM(row_norm, bf16, bf16, false)
ROW_NORM(row_norms, f32, float, true)
ROW_NORM(row_norms, bf16, bf16, true)

#define ROW_MOMENTS(suffix, T)                                                                     \
    extern "C" __global__ void row_norm_moments_##suffix(                                          \
        const T *xs, float *parts, unsigned rows, unsigned channels, unsigned per_part) {          \
        moments(xs, parts, {rows, channels, per_part});                                            \
    }

ROW_MOMENTS(f32, float)
ROW_MOMENTS(bf16, bf16)
