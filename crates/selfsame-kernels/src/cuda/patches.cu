// From images to tokens: patches cut out, and what their product becomes between them.

#include "device.cuh"

// Pixels [B, C, H, W] as patches [B, (H/P)·(W/P), C·P·P], rounded; a warp has a line of an
// image, and a lane two neighbours of it where patches are even, else one.
template <class T>
__device__ void cut(const float *xs, T *ys, unsigned channels, unsigned height, unsigned width,
                    unsigned patch) {
    const unsigned each = patch % 2 == 0 ? 2 : 1, line = blockIdx.x;
    const unsigned columns = width / patch, per_patch = channels * patch * patch;
    const unsigned y = line % height, channel = line / height % channels;
    const unsigned image = line / height / channels;
    const size_t row = (size_t)image * (height / patch) + y / patch;
    xs += (size_t)line * width;
    ys += row * columns * per_patch + (channel * patch + y % patch) * patch;
    for (unsigned x = each * threadIdx.x; x < width; x += each * blockDim.x) {
        T *to = ys + (size_t)(x / patch) * per_patch + x % patch;
        if (each == 2) {
            store_pair(to, load_pair(xs + x));
        } else {
            *to = from_f32<T>(xs[x]);
        }
    }
}

// tokens [B, 1 + N, D] = product [B, N, D] behind a row of zeros, plus offsets [1 + N, D].
template <class T>
__device__ void assemble(const T *product, const float *offsets, float *tokens, unsigned len,
                         unsigned num_tokens, unsigned width) {
    const unsigned i = 2 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= len) {
        return;
    }
    const unsigned per_image = num_tokens * width, image = i / per_image, at = i % per_image;
    float2 values = load_pair(offsets + at);
    if (at >= width) {
        const float2 xs = load_pair(product + (size_t)image * (per_image - width) + at - width);
        values.x += xs.x;
        values.y += xs.y;
    }
    store_pair(tokens + i, values);
}

// Rows 1 to N of each image's tokens, rounded.
template <class T>
__device__ void without_first(const float *tokens, T *rest, unsigned len, unsigned num_tokens,
                              unsigned width) {
    const unsigned i = 2 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= len) {
        return;
    }
    const unsigned per_image = (num_tokens - 1) * width, image = i / per_image;
    const size_t from = (size_t)image * num_tokens * width + width + i % per_image;
    store_pair(rest + i, load_pair(tokens + from));
}

#define PATCHES(suffix, T)                                                                         \
    extern "C" __global__ void patches_##suffix(const float *xs, T *ys, unsigned channels,         \
                                                unsigned height, unsigned width,                   \
                                                unsigned patch) {                                  \
        cut(xs, ys, channels, height, width, patch);                                               \
    }                                                                                              \
    extern "C" __global__ void tokens_##suffix(const T *product, const float *offsets,             \
                                               float *tokens, unsigned len, unsigned num_tokens,   \
                                               unsigned width) {                                   \
        assemble(product, offsets, tokens, len, num_tokens, width);                                \
    }                                                                                              \
    extern "C" __global__ void tokens_grad_##suffix(const float *tokens, T *rest, unsigned len,    \
                                                    unsigned num_tokens, unsigned width) {         \
        without_first(tokens, rest, len, num_tokens, width);                                       \
    }

PATCHES(f32, float)
PATCHES(bf16, bf16)
