// Eight neighbouring channels at once.
#pragma once

#include "device.cuh"

#define EIGHT 8u

struct Eight {
    float at[EIGHT];
};

// Eight elements as they are.
template <class T> struct RawEight {
    uint4 words[sizeof(T) / 2];
};

// From addresses of 16 bytes' alignment.
template <class T> __device__ inline RawEight<T> load_raw(const T *from) {
    return *(const RawEight<T> *)from;
}

__device__ inline Eight values_of(const RawEight<float> &raw) {
    Eight eight;
    UNROLL
    for (unsigned i = 0; i < 2; i++) {
        eight.at[4 * i] = __int_as_float(raw.words[i].x);
        eight.at[4 * i + 1] = __int_as_float(raw.words[i].y);
        eight.at[4 * i + 2] = __int_as_float(raw.words[i].z);
        eight.at[4 * i + 3] = __int_as_float(raw.words[i].w);
    }
    return eight;
}
__device__ inline Eight values_of(const RawEight<bf16> &raw) {
    const unsigned words[4] = {raw.words[0].x, raw.words[0].y, raw.words[0].z, raw.words[0].w};
    Eight eight;
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        eight.at[2 * i] = __int_as_float(words[i] << 16);
        eight.at[2 * i + 1] = __int_as_float(words[i] & 0xffff0000u);
    }
    return eight;
}

template <class T> __device__ inline Eight load_eight(const T *from) {
    return values_of(load_raw(from));
}

__device__ inline void store_eight(float *to, const Eight &eight) {
    UNROLL
    for (unsigned i = 0; i < 2; i++) {
        const float *at = eight.at + 4 * i;
        *((uint4 *)to + i) = {(unsigned)__float_as_int(at[0]), (unsigned)__float_as_int(at[1]),
                              (unsigned)__float_as_int(at[2]), (unsigned)__float_as_int(at[3])};
    }
}
__device__ inline void store_eight(bf16 *to, const Eight &eight) {
    unsigned words[4];
    UNROLL
    for (unsigned i = 0; i < 4; i++) {
        words[i] = bits_of(from_f32<bf16>(eight.at[2 * i])) |
                   bits_of(from_f32<bf16>(eight.at[2 * i + 1])) << 16;
    }
    *(uint4 *)to = {words[0], words[1], words[2], words[3]};
}
