// For processors without anything better: loops that a compiler can vectorize.
#include <cstring>

#include "linear/linear.hpp"
#include "simd/half.hpp"

#define PENSTOCK_ISA baseline

namespace penstock::linear {
namespace {

constexpr int64_t kMaxRows = 4;
constexpr int64_t kTiles = 1;
static_assert(span_of(static_cast<int>(Isa::baseline)) == 4);

// A block's codes, [32 columns][16 outputs].
struct Codes {
    int16_t column[kBlock][kTile];
};

PENSTOCK_INLINE int unpack_code(const uint8_t* block, int bits, int place) {
    const int line = place / 64, lane = place % 64;
    if (bits == 8) return block[place];
    const int low = block[line / 2 * 64 + lane] >> (line % 2 * 4) & 15;
    if (bits == 5) return low | (block[256 + lane] >> line & 1) << 4;
    if (bits == 6) return low | (block[256 + line / 4 * 64 + lane] >> (line % 4 * 2) & 3) << 4;
    return low;
}

template <int Bits>
PENSTOCK_INLINE void unpack(const uint8_t* block, Codes& codes) {
    for (int line = 0; line < 8; ++line)
        for (int o = 0; o < kTile; ++o)
            for (int c = 0; c < 4; ++c)
                codes.column[line * 4 + c][o] = static_cast<int16_t>(unpack_code(block, Bits, line * 64 + o * 4 + c));
}

// Products of a code and an int8 that int16 holds the sum of: (2^Bits - 1) * 128 times this is below 2^15.
constexpr int products_in_int16(int bits) { return bits == 4 ? 16 : bits == 5 ? 8 : bits == 6 ? 4 : 1; }

template <int Bits>
PENSTOCK_INLINE void add_dot(const Codes& codes, const int8_t* row, int first, int count, int32_t* sums) {
    constexpr int kTogether = products_in_int16(Bits);
    for (int c = first; c < first + count; c += kTogether) {
        int16_t part[kTile] = {};
        for (int i = 0; i < kTogether; ++i)
            for (int o = 0; o < kTile; ++o)
                part[o] = static_cast<int16_t>(part[o] + codes.column[c + i][o] * row[c + i]);
        for (int o = 0; o < kTile; ++o) sums[o] += part[o];
    }
}

PENSTOCK_INLINE void load_scales(const uint8_t* from, int bits, float* scales) {
    if (bits == 32) {
        std::memcpy(scales, from, kTile * 4);
        return;
    }
    uint16_t halves[kTile];
    std::memcpy(halves, from, sizeof halves);
    for (int o = 0; o < kTile; ++o) scales[o] = widen_half(halves[o]);
}

// Adds the columns of one group in one block.
template <int Bits, int Rows, int Groups>
PENSTOCK_INLINE void accumulate(const Weight& w, const Codes& codes, const uint8_t* scales_at, int group,
                                const RowRecord<Rows, Groups>& rows, float (&acc)[Rows][kTile]) {
    constexpr int kCount = kBlock / Groups;
    const int first = group * kCount;
    float scales[kTile], mins[kTile] = {};
    load_scales(scales_at, w.scale_bits, scales);
    if (w.has_min) load_scales(scales_at + scales_bytes(w), w.scale_bits, mins);
    int32_t code_sums[kTile] = {};
    for (int c = first; c < first + kCount; ++c)
        for (int o = 0; o < kTile; ++o) code_sums[o] += codes.column[c][o];
    for (int r = 0; r < Rows; ++r) {
        int32_t dots[kTile];
        for (int o = 0; o < kTile; ++o) dots[o] = code_sums[o] * rows.minus_zero[r] + rows.offsets[group][r];
        add_dot<Bits>(codes, rows.codes[r], first, kCount, dots);
        for (int o = 0; o < kTile; ++o) acc[r][o] += static_cast<float>(dots[o]) * (scales[o] * rows.scales[r]);
        if (!w.has_min) continue;
        for (int o = 0; o < kTile; ++o) acc[r][o] += mins[o] * rows.scaled_sums[group][r];
    }
}

template <int Bits, int Groups, int Rows>
void multiply(const Weight& w, const uint8_t* const* tiles, const uint8_t* rows, int32_t*, float* results) {
    float acc[Rows][kTile] = {};
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups>*>(rows);
    const uint8_t* at = tiles[0];
    Codes codes;
    for (int64_t i = 0; i < num_records(w); ++i, at += record_bytes(w)) {
        for (int64_t b = 0; b < blocks_per_record(w); ++b, ++record) {
            unpack<Bits>(at + header_bytes(w) + b * block_bytes(w), codes);
            for (int g = 0; g < Groups; ++g)
                accumulate<Bits>(w, codes, at + g * kTile * (w.scale_bits / 8), g, *record, acc);
        }
    }
    std::memcpy(results, acc, sizeof acc);
}

template <int Bits>
BlockKernel with_rows(int64_t groups, int64_t rows) {
    constexpr BlockKernel kKernels[2][kMaxRows] = {
        {multiply<Bits, 1, 1>, multiply<Bits, 1, 2>, multiply<Bits, 1, 3>, multiply<Bits, 1, 4>},
        {multiply<Bits, 2, 1>, multiply<Bits, 2, 2>, multiply<Bits, 2, 3>, multiply<Bits, 2, 4>}};
    return kKernels[groups - 1][rows - 1];
}

BlockKernel block_kernel(const Weight& w, int64_t rows, bool) {
    switch (w.code_bits) {
        case 4:
            return with_rows<4>(groups_per_record(w), rows);
        case 5:
            return with_rows<5>(groups_per_record(w), rows);
        case 6:
            return with_rows<6>(groups_per_record(w), rows);
        default:
            return with_rows<8>(groups_per_record(w), rows);
    }
}

}  // namespace
}  // namespace penstock::linear

#include "linear/sweep.inl"
