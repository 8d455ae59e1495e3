// The quantization of one block of a row, in registers: what the ops that produce quantized rows share.
#pragma once

#include "quantize/quantized_rows.hpp"
#include "simd/vec.hpp"

namespace penstock::quantize {
namespace {

// A range narrower than this is taken as zeros: the reciprocal of its scale could overflow.
constexpr float kSmallest = 0x1p-100f;
// One less than int8 has, so that both ends may be rounded outwards.
constexpr float kSteps = 254.0f;

// The values of one block, a before b, become block number `block` of the output. Every other op counts the blocks of
// all rows in one sequence: row * (size / kBlock) + place.
PENSTOCK_INLINE void quantize_block(f32x16 a, f32x16 b, const QuantizedRows& out, int64_t block) {
    float high, low;  // low: how far below 0
    max_lanes(max16(a, b), -min16(a, b), high, low);
    high = high > 0.0f ? high : 0.0f;
    low = low > 0.0f ? low : 0.0f;
    const float span = high + low;
    float scale = span * (1.0f / kSteps), inverse = kSteps / span;
    const bool unordered = any_nan(a, b);
    if (__builtin_expect(unordered || !(span >= kSmallest && span <= 3.4028235e38f), 0)) {
        scale = unordered ? __builtin_nanf("") : span < kSmallest ? 0.0f : span;
        inverse = 0.0f;
        a = b = f32x16{};
    }
    // The product is rounded once, to an integer, where the set has a fused multiply-add.
    constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: the unit in the last place there is 1
    const int32_t lowest = __builtin_bit_cast(int32_t, kRounder - low * inverse) - 0x4b400000;
    const int32_t zero = inverse == 0.0f ? 0 : -128 - lowest;
    const i32x16 steps_a = (i32x16)(a * inverse + kRounder) - 0x4b400000;
    const i32x16 steps_b = (i32x16)(b * inverse + kRounder) - 0x4b400000;
    store_i8(out.codes + block * kBlock, steps_a + zero);
    store_i8(out.codes + block * kBlock + 16, steps_b + zero);
    out.scales[block] = scale;
    out.zeros[block] = static_cast<int8_t>(zero);
    out.sums[block] = sum_lanes(steps_a + steps_b);
}

}  // namespace
}  // namespace penstock::quantize
