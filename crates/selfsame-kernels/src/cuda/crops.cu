// Crops that travelled as bytes become what the network takes.

#include "device.cuh"

// ys = (bytes / 255 - mean) / std, channel by channel, in the order and precision of torchvision.
// A block has some of the pixels of one plane.
template <class T>
__device__ void normalize(const unsigned char *bytes, T *ys, unsigned plane, float mean_red,
                          float mean_green, float mean_blue, float std_red, float std_green,
                          float std_blue) {
    const unsigned channel = blockIdx.x % 3;
    const float mean = channel == 0 ? mean_red : channel == 1 ? mean_green : mean_blue;
    const float std = channel == 0 ? std_red : channel == 1 ? std_green : std_blue;
    bytes += (size_t)blockIdx.x * plane;
    ys += (size_t)blockIdx.x * plane;
    const unsigned step = gridDim.y * blockDim.x;
    for (unsigned i = blockIdx.y * blockDim.x + threadIdx.x; i < plane; i += step) {
        const float unit = __fdiv_rn((float)bytes[i], 255.0f);
        ys[i] = from_f32<T>(__fdiv_rn(__fsub_rn(unit, mean), std));
    }
}

#define NORMALIZE(suffix, T)                                                                       \
    extern "C" __global__ void normalize_crops_##suffix(                                           \
        const unsigned char *bytes, T *ys, unsigned plane, float mean_red, float mean_green,       \
        float mean_blue, float std_red, float std_green, float std_blue) {                         \
        normalize(bytes, ys, plane, mean_red, mean_green, mean_blue, std_red, std_green,           \
                  std_blue);                                                                       \
    }

NORMALIZE(f32, float)
NORMALIZE(bf16, bf16)
