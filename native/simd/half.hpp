// float16 to float32 without instructions for it. Exact for every value; a NaN stays one.
#pragma once

#include "simd/vec.hpp"

namespace penstock {
namespace {

PENSTOCK_INLINE float widen_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t magnitude = half & 0x7fff;
    uint32_t bits = (magnitude << 13) + (112u << 23);
    if (magnitude >= 0x7c00) bits += 112u << 23;  // infinities and NaNs
    float value;
    if (magnitude < 0x0400) {  // subnormal: an integer number of 2^-24
        value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace
}  // namespace penstock
