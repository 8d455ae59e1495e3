// Sixteen floats as one value, on every instruction set: one AVX-512 register, two AVX2, four NEON or SSE ones. GCC's and
// Clang's vector types are lowered by the compiler to whatever the file's flags allow, so kernels that need no special
// instruction are written once and compiled once per instruction set.
//
// Everything is in an unnamed namespace and forced inline: an inline function that two files compile with different
// flags would otherwise be merged by the linker, and the baseline build would run AVX-512 instructions.
#pragma once

#include <cstdint>
#include <cstring>

#define PENSTOCK_INLINE inline __attribute__((always_inline))

namespace penstock {
namespace {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

PENSTOCK_INLINE f32x16 splat(float value) { return value - f32x16{}; }

PENSTOCK_INLINE f32x16 load16(const float* from) {
    f32x16 value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

PENSTOCK_INLINE void store16(float* to, f32x16 value) { std::memcpy(to, &value, sizeof value); }

// The first n < 16 floats; the other lanes are 0.
PENSTOCK_INLINE f32x16 load_some(const float* from, int64_t n) {
    f32x16 value{};
    std::memcpy(&value, from, static_cast<size_t>(n) * sizeof(float));
    return value;
}

PENSTOCK_INLINE void store_some(float* to, f32x16 value, int64_t n) {
    std::memcpy(to, &value, static_cast<size_t>(n) * sizeof(float));
}

PENSTOCK_INLINE f32x16 max16(f32x16 a, f32x16 b) { return a > b ? a : b; }
PENSTOCK_INLINE f32x16 min16(f32x16 a, f32x16 b) { return a < b ? a : b; }
PENSTOCK_INLINE f32x16 abs16(f32x16 a) { return (f32x16)((i32x16)a & 0x7fffffff); }

// Sum and maximum of the lanes, in one fixed order: halves are folded onto each other.
PENSTOCK_INLINE float sum_lanes(f32x16 value) {
    float lane[16];
    std::memcpy(lane, &value, sizeof value);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
}

PENSTOCK_INLINE float max_lanes(f32x16 value) {
    float lane[16];
    std::memcpy(lane, &value, sizeof value);
    for (int width = 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

// exp(x), relative error below 2e-7 (Cody and Waite's reduction, a polynomial of degree 6); 0 below -87, so that minus
// infinity gives exactly 0; x above 88 gives the value at 88.
PENSTOCK_INLINE f32x16 exp16(f32x16 x) {
    const f32x16 low = splat(-87.0f), high = splat(88.0f);
    const i32x16 vanishes = x < low;
    x = max16(min16(x, high), low);
    const f32x16 shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
    const f32x16 n = shifted - 12582912.0f;
    f32x16 r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    f32x16 p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const i32x16 exponent = ((i32x16)shifted - 0x4b400000 + 127) << 23;
    const f32x16 result = p * (f32x16)exponent;
    return (f32x16)((i32x16)result & ~vanishes);
}

PENSTOCK_INLINE f32x16 widen_bf16(const uint16_t* from) {
    u16x16 half;
    std::memcpy(&half, from, sizeof half);
    return (f32x16)(__builtin_convertvector(half, u32x16) << 16);
}

// Round to nearest even. A NaN stays one.
PENSTOCK_INLINE void narrow_bf16(uint16_t* to, f32x16 value) {
    const u32x16 bits = (u32x16)value;
    const u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const u32x16 is_nan = (u32x16)(value != value);
    const u16x16 half = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), u16x16);
    std::memcpy(to, &half, sizeof half);
}

}  // namespace
}  // namespace penstock
