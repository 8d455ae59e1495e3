// For processors without anything better, on the lanes of simd/vec.hpp. Of special instructions it knows SSE2's product
// of pairs of int16 alone, which every x86-64 has.
#include <cstring>

#include "linear/linear.hpp"
#include "simd/half.hpp"

#define PENSTOCK_ISA baseline

namespace penstock::linear {
namespace {

constexpr int64_t kMaxRows = 4;
constexpr int64_t kTiles = 1;
constexpr int kLines = 8;
static_assert(span_of(static_cast<int>(Isa::baseline)) == 4);

// A block's codes as int16: a line has columns c, c + 1, c + 2, c + 3, its first pairs are (c, c + 2), its second (c +
// 1, c + 3). A lane is an output.
struct Pairs {
    u32x16 of[kLines][2];
};

// One line as it is: a code in each byte.
template <int Bits>
PENSTOCK_INLINE u32x16 unpack_line(const uint8_t* block, int line) {
    if (Bits == 8) return load16(reinterpret_cast<const uint32_t*>(block + line * 64));
    const u32x16 low = load16(reinterpret_cast<const uint32_t*>(block + line / 2 * 64)) >> (line % 2 * 4) & 0x0f0f0f0f;
    if (Bits == 4) return low;
    const int shift = Bits == 5 ? line : line % 4 * 2;
    const uint8_t* high = block + 256 + (Bits == 5 ? 0 : line / 4 * 64);
    const uint32_t mask = Bits == 5 ? 0x01010101 : 0x03030303;
    return low | (load16(reinterpret_cast<const uint32_t*>(high)) >> shift & mask) << 4;
}

template <int Bits>
PENSTOCK_INLINE void unpack(const uint8_t* block, Pairs& pairs) {
    for (int line = 0; line < kLines; ++line) {
        const u32x16 codes = unpack_line<Bits>(block, line);
        pairs.of[line][0] = codes & 0x00ff00ff;
        pairs.of[line][1] = codes >> 8 & 0x00ff00ff;
    }
}

// sum + the products of both int16 of each lane with those of `pair`.
PENSTOCK_INLINE i32x16 add_products(i32x16 sum, u32x16 codes, int32_t pair) {
#if defined(__SSE2__)
    const __m128i both = _mm_set1_epi32(pair);
    for (int i = 0; i < kParts; ++i)
        sum.part[i] = (i32x16::Part)_mm_add_epi32((__m128i)sum.part[i], _mm_madd_epi16((__m128i)codes.part[i], both));
    return sum;
#else
    return sum + (i32x16)(codes & 0xffff) * static_cast<int16_t>(pair) + (i32x16)(codes >> 16) * (pair >> 16);
#endif
}

PENSTOCK_INLINE f32x16 to_float(i32x16 x) {
    f32x16 result;
    for (int i = 0; i < kParts; ++i) result.part[i] = __builtin_convertvector(x.part[i], f32x16::Part);
    return result;
}

PENSTOCK_INLINE f32x16 load_scales(const uint8_t* from, int bits) {
    float scales[kTile];
    if (bits == 32) {
        std::memcpy(scales, from, sizeof scales);
    } else {
        uint16_t halves[kTile];
        std::memcpy(halves, from, sizeof halves);
        for (int o = 0; o < kTile; ++o) scales[o] = widen_half(halves[o]);
    }
    return load16(scales);
}

// What a block is multiplied with: one group's columns.
struct Group {
    const Pairs& pairs;
    int first_line, behind_line;
    i32x16 code_sums;  // pairs of the codes' sum and the zero point
    f32x16 scales, mins;
    bool has_min;

    PENSTOCK_INLINE Group(const Weight& w, const Pairs& pairs_, int group, int groups, const uint8_t* scales_at)
        : pairs(pairs_), first_line(group * kLines / groups), behind_line((group + 1) * kLines / groups),
          code_sums(broadcast<int32_t>(w.zero_point << 16)),
          scales(load_scales(scales_at, w.scale_bits)),
          mins(w.has_min ? load_scales(scales_at + scales_bytes(w), w.scale_bits) : scales), has_min(w.has_min) {
        for (int line = first_line; line < behind_line; ++line)
            for (const u32x16& codes : pairs.of[line]) code_sums = add_products(code_sums, codes, pair16(1, 1));
    }

    PENSTOCK_INLINE i32x16 dot(const int8_t* row, int32_t minus) const {
        i32x16 sum = add_products(i32x16{}, (u32x16)code_sums, minus);
        for (int line = first_line; line < behind_line; ++line) {
            const int8_t* quad = row + line * 4;
            sum = add_products(sum, pairs.of[line][0], pair16(quad[0], quad[2]));
            sum = add_products(sum, pairs.of[line][1], pair16(quad[1], quad[3]));
        }
        return sum;
    }
};

template <int Bits, int Groups, int Rows>
void multiply(const Weight& w, const uint8_t* const* tiles, uint8_t*, const uint8_t* rows, float* results) {
    f32x16 acc[Rows] = {};
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups>*>(rows);
    const uint8_t* at = tiles[0];
    Pairs pairs;
    for (int64_t i = 0; i < num_records(w); ++i, at += record_bytes(w)) {
        for (int64_t b = 0; b < blocks_per_record(w); ++b, ++record) {
            unpack<Bits>(at + header_bytes(w) + b * block_bytes(w), pairs);
            for (int g = 0; g < Groups; ++g) {
                const Group group(w, pairs, g, Groups, at + g * kTile * (w.scale_bits / 8));
                for (int r = 0; r < Rows; ++r) {
                    const i32x16 dot = group.dot(record->codes[r], record->minus[g][r]);
                    acc[r] = to_float(dot) * (group.scales * record->scales[r]) + acc[r];
                    if (group.has_min) acc[r] = group.mins * record->scaled_sums[g][r] + acc[r];
                }
            }
        }
    }
    for (int r = 0; r < Rows; ++r) store16(results + r * kTile, acc[r]);
}

template <int Bits, int Groups>
struct Kernels {
    static constexpr int64_t kPreparedBytes = 0;
    static constexpr BlockKernel kFirst[kMaxRows] = {multiply<Bits, Groups, 1>, multiply<Bits, Groups, 2>,
                                                        multiply<Bits, Groups, 3>, multiply<Bits, Groups, 4>};
    static constexpr const BlockKernel (&kOther)[kMaxRows] = kFirst;
};

bool has_wide_rows(const Weight&) { return false; }

}  // namespace
}  // namespace penstock::linear

#include "linear/sweep.inl"
