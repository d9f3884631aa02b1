// Images whose channels lie side by side, [batch, h, w, channels]: the windows of a convolution as
// rows of a matrix and back, max pooling, and the way from and to planes.
//
// A thread has eight channels of a position, and numbers of channels are multiples of eight. The
// rows of a matrix are positions in the order of the images; a row of windows is
// [kernel_h, kernel_w, channels].

#include "eight.cuh"
#include "windows.cuh"

// rows = the windows of `count` images from number `first` on; zeros beyond an image's edge.
template <class T>
__device__ void gather(const T *__restrict__ images, T *__restrict__ rows, unsigned first,
                       unsigned count, Windows s) {
    const unsigned vectors = s.channels / EIGHT, per_image = s.h_out * s.w_out;
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned row = thread / vectors, channel = thread % vectors * EIGHT;
    if (row >= count * per_image) {
        return;
    }
    const unsigned window = row % per_image;
    const unsigned y = window / s.w_out * s.stride, x = window % s.w_out * s.stride;
    images += (size_t)(first + row / per_image) * s.h * s.w * s.channels + channel;
    rows += (size_t)row * s.kernel_h * s.kernel_w * s.channels + channel;
    for (unsigned i = 0; i < s.kernel_h; i++) {
#pragma unroll 3
        for (unsigned j = 0; j < s.kernel_w; j++) {
            // What lies before the image wraps around to a large number.
            const unsigned line = y + i - s.padding, column = x + j - s.padding;
            RawEight<T> value = {};
            if (line < s.h && column < s.w) {
                const size_t place = (size_t)line * s.w + column;
                value = load_raw(images + place * s.channels);
            }
            *(RawEight<T> *)(rows + (size_t)(i * s.kernel_w + j) * s.channels) = value;
        }
    }
}

// The transpose: eight channels of a position become the sum of what the windows hold of them, in
// the order of the kernel's positions; added to what is there if `add`.
template <class T>
__device__ void add_up(const T *__restrict__ rows, T *__restrict__ images, unsigned first,
                       unsigned count, Windows s, unsigned add) {
    const unsigned vectors = s.channels / EIGHT, per_image = s.h * s.w;
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned place = thread / vectors, channel = thread % vectors * EIGHT;
    if (place >= count * per_image) {
        return;
    }
    const unsigned image = place / per_image, y = place % per_image / s.w, x = place % s.w;
    const size_t taps = (size_t)s.kernel_h * s.kernel_w;
    rows += (size_t)image * s.h_out * s.w_out * taps * s.channels + channel;
    images += ((size_t)first * per_image + place) * s.channels + channel;
    Eight sums = {};
    for (unsigned i = 0; i < s.kernel_h; i++) {
        // stride * line + i = y + padding, where there is such a line.
        const unsigned line = (y + s.padding - i) / s.stride;
        if (y + s.padding < i || line >= s.h_out || line * s.stride + i != y + s.padding) {
            continue;
        }
#pragma unroll 3
        for (unsigned j = 0; j < s.kernel_w; j++) {
            const unsigned column = (x + s.padding - j) / s.stride;
            if (x + s.padding >= j && column < s.w_out &&
                column * s.stride + j == x + s.padding) {
                const size_t window = (size_t)line * s.w_out + column;
                const size_t tap = window * taps + i * s.kernel_w + j;
                const Eight part = load_eight(rows + tap * s.channels);
                UNROLL
                for (unsigned c = 0; c < EIGHT; c++) {
                    sums.at[c] += part.at[c];
                }
            }
        }
    }
    if (add) {
        const Eight before = load_eight(images);
        UNROLL
        for (unsigned c = 0; c < EIGHT; c++) {
            sums.at[c] = before.at[c] + sums.at[c];
        }
    }
    store_eight(images, sums);
}

// The windows of f32 images [batch, channels, h, w], with any number of channels: rows of
// [channels, kernel_h, kernel_w] and zeros up to `ld`, a multiple of eight.
template <class T>
__device__ void gather_planes(const float *__restrict__ images, T *__restrict__ rows,
                              unsigned first, unsigned count, unsigned ld, Windows s) {
    const unsigned vectors = ld / EIGHT, per_image = s.h_out * s.w_out;
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned row = thread / vectors, start = thread % vectors * EIGHT;
    if (row >= count * per_image) {
        return;
    }
    const unsigned window = row % per_image, taps = s.kernel_h * s.kernel_w;
    const unsigned y = window / s.w_out * s.stride, x = window % s.w_out * s.stride;
    images += (size_t)(first + row / per_image) * s.channels * s.h * s.w;
    unsigned channel = start / taps, i = start % taps / s.kernel_w, j = start % s.kernel_w;
    Eight values = {};
    UNROLL
    for (unsigned k = 0; k < EIGHT; k++) {
        const unsigned line = y + i - s.padding, column = x + j - s.padding;
        if (channel < s.channels && line < s.h && column < s.w) {
            values.at[k] = images[((size_t)channel * s.h + line) * s.w + column];
        }
        // The next element of the window.
        j++;
        if (j == s.kernel_w) {
            j = 0;
            i++;
        }
        if (i == s.kernel_h) {
            i = 0;
            channel++;
        }
    }
    store_eight(rows + (size_t)row * ld + start, values);
}

// ys = the largest value of each window, winners its place within the window. The first of equal
// values wins, and a NaN over everything. `count` windows in all.
template <class T>
__device__ void pool(const T *__restrict__ xs, T *__restrict__ ys, unsigned *winners,
                     unsigned count, Windows s) {
    const unsigned vectors = s.channels / EIGHT, per_image = s.h_out * s.w_out;
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned window = thread / vectors, channel = thread % vectors * EIGHT;
    if (window >= count) {
        return;
    }
    const unsigned y = window % per_image / s.w_out * s.stride, x = window % s.w_out * s.stride;
    xs += (size_t)(window / per_image) * s.h * s.w * s.channels + channel;
    Eight best;
    unsigned winner[EIGHT];
    UNROLL
    for (unsigned c = 0; c < EIGHT; c++) {
        best.at[c] = negative_infinity();
        winner[c] = s.kernel_h * s.kernel_w;
    }
    for (unsigned i = 0; i < s.kernel_h; i++) {
#pragma unroll 3
        for (unsigned j = 0; j < s.kernel_w; j++) {
            const unsigned line = y + i - s.padding, column = x + j - s.padding;
            if (line < s.h && column < s.w) {
                const Eight values = load_eight(xs + ((size_t)line * s.w + column) * s.channels);
                UNROLL
                for (unsigned c = 0; c < EIGHT; c++) {
                    const float value = values.at[c];
                    // The first element within the plane also if all are minus infinity.
                    if (value > best.at[c] || value != value ||
                        winner[c] == s.kernel_h * s.kernel_w) {
                        best.at[c] = value;
                        winner[c] = i * s.kernel_w + j;
                    }
                }
            }
        }
    }
    const size_t at = (size_t)window * s.channels + channel;
    store_eight(ys + at, best);
    UNROLL
    for (unsigned half = 0; half < 2; half++) {
        const unsigned *own = winner + 4 * half;
        winners[at / 4 + half] = own[0] | own[1] << 8 | own[2] << 16 | own[3] << 24;
    }
}

// Each of `count` positions gets the gradients of the windows that it won, in their order.
template <class T>
__device__ void pool_grad(const unsigned *__restrict__ winners, const T *__restrict__ grad,
                          T *__restrict__ dx, unsigned count, Windows s) {
    const unsigned vectors = s.channels / EIGHT, per_image = s.h * s.w;
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned place = thread / vectors, channel = thread % vectors * EIGHT;
    if (place >= count) {
        return;
    }
    // Within the padded image.
    const unsigned y = place % per_image / s.w + s.padding, x = place % s.w + s.padding;
    const unsigned first_line = y < s.kernel_h ? 0 : (y - s.kernel_h) / s.stride + 1;
    const unsigned first_column = x < s.kernel_w ? 0 : (x - s.kernel_w) / s.stride + 1;
    const unsigned end_line = smaller(s.h_out, y / s.stride + 1);
    const unsigned end_column = smaller(s.w_out, x / s.stride + 1);
    const size_t image = (size_t)(place / per_image) * s.h_out * s.w_out;
    Eight sums = {};
    for (unsigned line = first_line; line < end_line; line++) {
        for (unsigned column = first_column; column < end_column; column++) {
            const unsigned tap = (y - line * s.stride) * s.kernel_w + (x - column * s.stride);
            const size_t window = image + (size_t)line * s.w_out + column;
            const size_t at = window * s.channels + channel;
            const Eight of_window = load_eight(grad + at);
            UNROLL
            for (unsigned c = 0; c < EIGHT; c++) {
                const unsigned winner = winners[at / 4 + c / 4] >> (c % 4 * 8) & 0xff;
                sums.at[c] += winner == tap ? of_window.at[c] : 0.0f;
            }
        }
    }
    store_eight(dx + (size_t)place * s.channels + channel, sums);
}

// to [batch, cols, rows] = from [batch, rows, cols] with the last two dimensions exchanged, by
// tiles of 32 x 32; a block of 32 x 8 threads has one.
template <class In, class Out>
__device__ void exchange(const In *from, Out *to, unsigned rows, unsigned cols) {
    __shared__ float tile[WARP][WARP + 1];
    const unsigned tiles = (rows + WARP - 1) / WARP;
    const unsigned row = blockIdx.x % tiles * WARP, col = blockIdx.y * WARP;
    const size_t image = (size_t)(blockIdx.x / tiles) * rows * cols;
    for (unsigned i = threadIdx.y; i < WARP; i += blockDim.y) {
        if (row + i < rows && col + threadIdx.x < cols) {
            const size_t at = image + (size_t)(row + i) * cols + col + threadIdx.x;
            tile[i][threadIdx.x] = to_f32(from[at]);
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.y; i < WARP; i += blockDim.y) {
        if (col + i < cols && row + threadIdx.x < rows) {
            const size_t at = image + (size_t)(col + i) * rows + row + threadIdx.x;
            to[at] = from_f32<Out>(tile[threadIdx.x][i]);
        }
    }
}

// The weight of a convolution: launch/channels_last.rs writes this, word by word.
struct Weight {
    // [outputs, channels, taps]
    float *plain;
    // [outputs, ld]: rows as those of the windows, of type T or, for a gradient, f32.
    void *matrix;
    unsigned outputs, channels, taps, ld;
    // Whether the windows are those of planes.
    unsigned long long of_planes;

    // Where column `k` of a row of the matrix lies among the row of the weight.
    __device__ unsigned place(unsigned k) const {
        return of_planes ? k : k % channels * taps + k / channels;
    }
};

// Each matrix from its weight; block (x, y) does the x-th part of weight y.
template <class T> __device__ void to_matrices(const Weight *weights) {
    const Weight weight = weights[blockIdx.y];
    const unsigned len = weight.channels * weight.taps, end = weight.outputs * weight.ld;
    T *matrix = (T *)weight.matrix;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < end; i += gridDim.x * blockDim.x) {
        const unsigned k = i % weight.ld;
        const float *row = weight.plain + (size_t)(i / weight.ld) * len;
        matrix[i] = from_f32<T>(k < len ? row[weight.place(k)] : 0.0f);
    }
}

// The gradient of each weight from that of its matrix.
extern "C" __global__ void weights_from_matrices(const Weight *weights) {
    const Weight weight = weights[blockIdx.y];
    const unsigned len = weight.channels * weight.taps, end = weight.outputs * len;
    const float *matrix = (const float *)weight.matrix;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < end; i += gridDim.x * blockDim.x) {
        const unsigned row = i / len, k = i % len;
        weight.plain[(size_t)row * len + weight.place(k)] = matrix[(size_t)row * weight.ld + k];
    }
}

#define CHANNELS_LAST(suffix, T)                                                                   \
    extern "C" __global__ void windows_of_rows_##suffix(                                           \
        const T *images, T *rows, unsigned first, unsigned count, unsigned channels, unsigned h,   \
        unsigned w, unsigned kernel_h, unsigned kernel_w, unsigned h_out, unsigned w_out,          \
        unsigned stride, unsigned padding) {                                                       \
        gather(images, rows, first, count,                                                         \
               {channels, h, w, kernel_h, kernel_w, h_out, w_out, stride, padding});               \
    }                                                                                              \
    extern "C" __global__ void rows_of_windows_##suffix(                                           \
        const T *rows, T *images, unsigned first, unsigned count, unsigned channels, unsigned h,   \
        unsigned w, unsigned kernel_h, unsigned kernel_w, unsigned h_out, unsigned w_out,          \
        unsigned stride, unsigned padding, unsigned add) {                                         \
        add_up(rows, images, first, count,                                                         \
               {channels, h, w, kernel_h, kernel_w, h_out, w_out, stride, padding}, add);          \
    }                                                                                              \
    extern "C" __global__ void windows_of_planes_##suffix(                                         \
        const float *images, T *rows, unsigned first, unsigned count, unsigned channels,           \
        unsigned h, unsigned w, unsigned kernel_h, unsigned kernel_w, unsigned h_out,              \
        unsigned w_out, unsigned stride, unsigned padding, unsigned ld) {                          \
        gather_planes(images, rows, first, count, ld,                                              \
                      {channels, h, w, kernel_h, kernel_w, h_out, w_out, stride, padding});        \
    }                                                                                              \
    extern "C" __global__ void max_pool_rows_##suffix(                                             \
        const T *xs, T *ys, unsigned *winners, unsigned count, unsigned channels, unsigned h,      \
        unsigned w, unsigned kernel_h, unsigned kernel_w, unsigned h_out, unsigned w_out,          \
        unsigned stride, unsigned padding) {                                                       \
        pool(xs, ys, winners, count,                                                               \
             {channels, h, w, kernel_h, kernel_w, h_out, w_out, stride, padding});                 \
    }                                                                                              \
    extern "C" __global__ void max_pool_rows_grad_##suffix(                                        \
        const unsigned *winners, const T *grad, T *dx, unsigned count, unsigned channels,          \
        unsigned h, unsigned w, unsigned kernel_h, unsigned kernel_w, unsigned h_out,              \
        unsigned w_out, unsigned stride, unsigned padding) {                                       \
        pool_grad(winners, grad, dx, count,                                                        \
                  {channels, h, w, kernel_h, kernel_w, h_out, w_out, stride, padding});            \
    }                                                                                              \
    extern "C" __global__ void rows_to_planes_##suffix(const T *from, float *to, unsigned rows,    \
                                                       unsigned cols) {                            \
        exchange(from, to, rows, cols);                                                            \
    }                                                                                              \
    extern "C" __global__ void planes_to_rows_##suffix(const float *from, T *to, unsigned rows,    \
                                                       unsigned cols) {                            \
        exchange(from, to, rows, cols);                                                            \
    }                                                                                              \
    extern "C" __global__ void weights_to_matrices_##suffix(const Weight *weights) {               \
        to_matrices<T>(weights);                                                                   \
    }

CHANNELS_LAST(f32, float)
CHANNELS_LAST(bf16, bf16)
