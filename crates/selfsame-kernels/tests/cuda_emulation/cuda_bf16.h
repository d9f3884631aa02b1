// bf16 as the upper half of an f32.
#pragma once

#include "emulation.h"

struct __nv_bfloat16 {
    std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) { return __int_as_float(unsigned(x.bits) << 16); }

inline std::uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

// To the nearest, ties to even; a NaN stays one.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (x != x) {
        return {std::uint16_t(0x7fff)};
    }
    bits += 0x7fff + (bits >> 16 & 1);
    return {std::uint16_t(bits >> 16)};
}
