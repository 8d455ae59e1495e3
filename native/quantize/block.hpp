// The quantization of a row whose values are still in registers: what the ops that produce quantized rows share.
#pragma once

#include "quantize/quantized_rows.hpp"
#include "simd/vec.hpp"

namespace penstock::quantize {
namespace {

// A range narrower than this is taken as zeros: the reciprocal of its scale could overflow.
constexpr float kSmallest = 0x1p-100f;
constexpr float kLargest = 0x1.fffffep127f;
// One less than int8 has, so that both ends may be rounded outwards.
constexpr float kSteps = 254.0f;
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: the unit in the last place there is 1
constexpr int kGroup = 4;                // blocks at once: their ranges, scales and zeros are lanes of one vector

PENSTOCK_INLINE f32x4 at_least_zero(f32x4 value) { return value > f32x4{} ? value : f32x4{}; }

// Blocks whose values or whose range are not finite: values 0 and a range that is not finite.
PENSTOCK_INLINE void poison(f32x16* v, f32x4& span) {
    for (int k = 0; k < kGroup; ++k) {
        const bool unordered = any_nan(v[2 * k], v[2 * k + 1]);
        if (unordered) span[k] = __builtin_nanf("");
        if (unordered || span[k] > kLargest) v[2 * k] = v[2 * k + 1] = f32x16{};
    }
}

// The values of `count` <= kGroup blocks, two vectors each, become blocks `first` and following of the output.
PENSTOCK_INLINE void quantize_group(f32x16 (&v)[2 * kGroup], const QuantizedRows& out, int64_t first, int64_t count) {
    const f32x4 high = at_least_zero(fold_each(max16(v[0], v[1]), max16(v[2], v[3]), max16(v[4], v[5]),
                                               max16(v[6], v[7]), Max{}));
    const f32x4 low = at_least_zero(-fold_each(min16(v[0], v[1]), min16(v[2], v[3]), min16(v[4], v[5]),
                                               min16(v[6], v[7]), Min{}));  // how far below 0
    f32x4 span = high + low;
    const float widest = (span[0] + span[1]) + (span[2] + span[3]);
    const bool unordered = any_nan(v[0], v[1]) | any_nan(v[2], v[3]) | any_nan(v[4], v[5]) | any_nan(v[6], v[7]);
    if (__builtin_expect(unordered | !(widest <= kLargest), 0)) poison(v, span);
    const i32x4 usable = (span >= kSmallest) & (span <= kLargest);
    const f32x4 inverse = (f32x4)((i32x4)(kSteps / span) & usable);
    const f32x4 scale = (f32x4)((i32x4)(usable ? span * (1.0f / kSteps) : span) & ~(i32x4)(span < kSmallest));
    // Products are rounded once, to integers, where the set has a fused multiply-add.
    const i32x4 zero = (-128 - ((i32x4)(kRounder - low * inverse) - 0x4b400000)) & usable;
    i32x16 steps[kGroup];
#pragma GCC unroll 4
    for (int k = 0; k < kGroup; ++k) {
        const i32x16 a = (i32x16)(v[2 * k] * inverse[k] + kRounder) - 0x4b400000;
        const i32x16 b = (i32x16)(v[2 * k + 1] * inverse[k] + kRounder) - 0x4b400000;
        steps[k] = a + b;
        if (k >= count) continue;
        store_i8(out.codes + (first + k) * kBlock, a + zero[k]);
        store_i8(out.codes + (first + k) * kBlock + 16, b + zero[k]);
    }
    const f32x4 sums = fold_each((f32x16)steps[0], (f32x16)steps[1], (f32x16)steps[2], (f32x16)steps[3], AddIntegers{});
    std::memcpy(out.scales + first, &scale, sizeof(float) * static_cast<size_t>(count));
    std::memcpy(out.sums + first, &sums, sizeof(int32_t) * static_cast<size_t>(count));
    store_i8(out.zeros + first, zero, count);
}

// A row of `size` columns becomes the blocks `first` and following of the output. Blocks are numbered through all rows.
// load(column) answers 16 columns.
template <class Load>
PENSTOCK_INLINE void quantize_row(int64_t size, const QuantizedRows& out, int64_t first, Load load) {
    const int64_t blocks = size / kBlock;
    int64_t j = 0;
    for (; j + kGroup <= blocks; j += kGroup) {
        f32x16 v[2 * kGroup];
#pragma GCC unroll 8
        for (int k = 0; k < 2 * kGroup; ++k) v[k] = load(j * kBlock + k * 16);
        quantize_group(v, out, first + j, kGroup);
    }
    if (j < blocks) {
        f32x16 v[2 * kGroup] = {};
#pragma GCC unroll 8
        for (int k = 0; k < 2 * kGroup; ++k)
            if (j * kBlock + k * 16 < size) v[k] = load(j * kBlock + k * 16);
        quantize_group(v, out, first + j, blocks - j);
    }
}

}  // namespace
}  // namespace penstock::quantize
