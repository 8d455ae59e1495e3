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

// Columns [first, first + count) of a block, which share scales and minima, times every row.
template <int Bits>
PENSTOCK_INLINE void accumulate(const Weight& w, const QuantizedRows& x, int64_t block, const Codes& codes, int first,
                                int count, const uint8_t* scales_at, float (*acc)[kTile]) {
    float scales[kTile], mins[kTile] = {};
    load_scales(scales_at, w.scale_bits, scales);
    if (w.has_min) load_scales(scales_at + scales_bytes(w), w.scale_bits, mins);
    int32_t code_sums[kTile] = {};
    for (int c = first; c < first + count; ++c)
        for (int o = 0; o < kTile; ++o) code_sums[o] += codes.column[c][o];
    for (int64_t r = 0; r < x.num_rows; ++r) {
        const int64_t i = r * (w.in_features / kBlock) + block;
        const int8_t* row = x.codes + r * w.in_features + block * kBlock;
        int32_t sum = x.sums[i];
        if (count < kBlock) {
            sum = -count * x.zeros[i];
            for (int c = first; c < first + count; ++c) sum += row[c];
        }
        int32_t dots[kTile];
        for (int o = 0; o < kTile; ++o) dots[o] = -code_sums[o] * x.zeros[i] - w.zero_point * sum;
        add_dot<Bits>(codes, row, first, count, dots);
        const float scale = x.scales[i];
        for (int o = 0; o < kTile; ++o) acc[r][o] += static_cast<float>(dots[o]) * (scales[o] * scale);
        if (!w.has_min) continue;
        const float scaled_sum = scale * static_cast<float>(sum);
        for (int o = 0; o < kTile; ++o) acc[r][o] += mins[o] * scaled_sum;
    }
}

template <int Bits>
void multiply(const Weight& w, const uint8_t* const* tiles, const QuantizedRows& x, float* results) {
    float acc[kMaxRows][kTile] = {};
    const uint8_t* record = tiles[0];
    Codes codes;
    int64_t block = 0;
    for (int64_t i = 0; i < num_records(w); ++i, record += record_bytes(w)) {
        for (int64_t b = 0; b < blocks_per_record(w); ++b, ++block) {
            unpack<Bits>(record + header_bytes(w) + b * block_bytes(w), codes);
            const int columns = static_cast<int>(kBlock / groups_per_record(w));
            for (int g = 0; g * columns < kBlock; ++g)
                accumulate<Bits>(w, x, block, codes, g * columns, columns, record + g * kTile * (w.scale_bits / 8), acc);
        }
    }
    std::memcpy(results, acc, static_cast<size_t>(x.num_rows * kTile) * sizeof(float));
}

BlockKernel block_kernel(const Weight& w, int64_t) {
    switch (w.code_bits) {
        case 4:
            return multiply<4>;
        case 5:
            return multiply<5>;
        case 6:
            return multiply<6>;
        default:
            return multiply<8>;
    }
}

}  // namespace
}  // namespace penstock::linear

#include "linear/sweep.inl"
