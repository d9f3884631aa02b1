// Windows of images as columns of a matrix ("im2col"), and back: what stands around the matrix
// products of a convolution.
//
// Columns are [channels * kernel_h * kernel_w, ld]: column (image * h_out + y) * w_out + x is the
// window at (y, x), and those beyond the last window are zeros, so that rows begin aligned.
// A window of one element makes this a transposition of images and channels.

#include "device.cuh"
#include "windows.cuh"

// Channels that a thread does, having found once where its windows lie.
#define CHANNELS 8u

// columns = the windows of `count` images from number `first` on.
template <class T>
__device__ void gather(const float *images, T *columns, unsigned first, unsigned count, unsigned ld,
                       Windows s) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= ld) {
        return;
    }
    const unsigned channel = blockIdx.y * CHANNELS;
    const unsigned end = smaller(s.channels, channel + CHANNELS);
    const size_t plane = (size_t)s.h * s.w, taps = (size_t)s.kernel_h * s.kernel_w;
    const unsigned image = column / (s.h_out * s.w_out);
    const unsigned y = column / s.w_out % s.h_out, x = column % s.w_out;
    const bool is_window = image < count;
    images += ((size_t)(first + image) * s.channels + channel) * plane;
    columns += channel * taps * ld + column;
    for (unsigned i = 0; i < s.kernel_h; i++) {
        for (unsigned j = 0; j < s.kernel_w; j++) {
            // What lies before the image wraps around to a large number.
            const unsigned row = y * s.stride + i - s.padding;
            const unsigned col = x * s.stride + j - s.padding;
            const bool inside = is_window && row < s.h && col < s.w;
            const size_t from = inside ? (size_t)row * s.w + col : 0;
            const size_t to = (i * s.kernel_w + j) * (size_t)ld;
#pragma unroll 4
            for (unsigned c = 0; c < end - channel; c++) {
                const float value = inside ? images[c * plane + from] : 0.0f;
                columns[c * taps * ld + to] = from_f32<T>(value);
            }
        }
    }
}

// The transpose: each element of `count` images from number `first` on becomes the sum of what its
// windows hold of it, in the order of the kernel's positions; added to what is there if `add`.
template <class T>
__device__ void add_up(const T *columns, float *images, unsigned first, unsigned count, unsigned ld,
                       Windows s, unsigned add) {
    const unsigned place = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned image = place / (s.h * s.w);
    if (image >= count) {
        return;
    }
    const unsigned channel = blockIdx.y * CHANNELS;
    const unsigned num_channels = smaller(s.channels - channel, CHANNELS);
    const size_t plane = (size_t)s.h * s.w, taps = (size_t)s.kernel_h * s.kernel_w;
    const unsigned y = place / s.w % s.h, x = place % s.w;
    columns += channel * taps * ld + (size_t)image * s.h_out * s.w_out;
    float sums[CHANNELS];
#pragma unroll
    for (unsigned c = 0; c < CHANNELS; c++) {
        sums[c] = 0.0f;
    }
    for (unsigned i = 0; i < s.kernel_h; i++) {
        // stride * row + i = y + padding, where there is such a row.
        const unsigned row = (y + s.padding - i) / s.stride;
        if (y + s.padding < i || row >= s.h_out || row * s.stride + i != y + s.padding) {
            continue;
        }
        for (unsigned j = 0; j < s.kernel_w; j++) {
            const unsigned col = (x + s.padding - j) / s.stride;
            if (x + s.padding < j || col >= s.w_out || col * s.stride + j != x + s.padding) {
                continue;
            }
            const size_t from =
                (i * s.kernel_w + j) * (size_t)ld + (size_t)row * s.w_out + col;
#pragma unroll
            for (unsigned c = 0; c < CHANNELS; c++) {
                if (c < num_channels) {
                    sums[c] += to_f32(columns[c * taps * ld + from]);
                }
            }
        }
    }
    images += ((size_t)(first + image) * s.channels + channel) * plane + (size_t)y * s.w + x;
#pragma unroll
    for (unsigned c = 0; c < CHANNELS; c++) {
        if (c < num_channels) {
            images[c * plane] = (add ? images[c * plane] : 0.0f) + sums[c];
        }
    }
}

#define CONV(suffix, T)                                                                            \
    extern "C" __global__ void im2col_##suffix(                                                    \
        const float *images, T *columns, unsigned first, unsigned count, unsigned ld,              \
        unsigned channels, unsigned h, unsigned w, unsigned kernel_h, unsigned kernel_w,           \
        unsigned h_out, unsigned w_out, unsigned stride, unsigned padding) {                       \
        const Windows windows = {channels, h,     w,      kernel_h, kernel_w,                      \
                                 h_out,    w_out, stride, padding};                                \
        gather(images, columns, first, count, ld, windows);                                        \
    }                                                                                              \
    extern "C" __global__ void col2im_##suffix(                                                    \
        const T *columns, float *images, unsigned first, unsigned count, unsigned ld,              \
        unsigned channels, unsigned h, unsigned w, unsigned kernel_h, unsigned kernel_w,           \
        unsigned h_out, unsigned w_out, unsigned stride, unsigned padding, unsigned add) {         \
        const Windows windows = {channels, h,     w,      kernel_h, kernel_w,                      \
                                 h_out,    w_out, stride, padding};                                \
        add_up(columns, images, first, count, ld, windows, add);                                   \
    }

CONV(f32, float)
CONV(bf16, bf16)
