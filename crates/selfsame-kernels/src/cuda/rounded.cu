// Many weights rounded to bf16 by one launch.

#include "device.cuh"

// A weight: launch/rounded.rs writes this, word by word.
struct Source {
    const float *values;
    unsigned long long len;
    // Of its first element in the output; even.
    unsigned long long start;
};

// Block (x, y) does the x-th part of weight y.
extern "C" __global__ void rounded(const Source *sources, bf16 *to) {
    const Source source = sources[blockIdx.y];
    const unsigned long long step = 2ull * gridDim.x * blockDim.x;
    unsigned long long i = 2ull * (blockIdx.x * blockDim.x + threadIdx.x);
    for (; i + 1 < source.len; i += step) {
        store_pair(to + source.start + i, load_pair(source.values + i));
    }
    if (i < source.len) {
        to[source.start + i] = from_f32<bf16>(source.values[i]);
    }
}
