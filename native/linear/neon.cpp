// On usmmla: two outputs times two rows, eight columns at a time. One of the rows is all ones: its dots are the sums of
// the weight's codes, which the zeros of the other rows are multiplied with.
#include <arm_neon.h>

#include "linear/linear.hpp"

#define PENSTOCK_ISA neon

namespace penstock::linear {
namespace {

constexpr int64_t kMaxRows = 7;  // with the ones four pairs
constexpr int64_t kTiles = 1;
constexpr int kSpan = 8;
constexpr int kSpans = kBlock / kSpan;
constexpr int kHalves = 2;  // of a tile, 8 outputs each: what the accumulators of four pairs leave registers for
constexpr int kVectors = 4;  // of two outputs, in half a tile
static_assert(span_of(static_cast<int>(Isa::neon)) == kSpan);

// Bits of x as they are when it is shifted by `by`, to the left when positive, that `mask` has.
PENSTOCK_INLINE uint8x16_t shift_and(uint8x16_t x, int by, uint8_t mask) {
    return (by >= 0 ? x << static_cast<uint8_t>(by) : x >> static_cast<uint8_t>(-by)) & vdupq_n_u8(mask);
}

// Columns of `span` of outputs 2 * vector and 2 * vector + 1 of a half; all are constants once the loops are unrolled.
template <int Bits>
PENSTOCK_INLINE uint8x16_t unpack(const uint8_t* block, int span, int half, int vector) {
    const int line = span * 2 + half, lane = vector * 16;
    if constexpr (Bits == 8) return vld1q_u8(block + line * 64 + lane);
    const uint8x16_t pair = vld1q_u8(block + span * 64 + lane);
    const uint8x16_t low = half == 0 ? pair & vdupq_n_u8(15) : pair >> static_cast<uint8_t>(4);
    if constexpr (Bits == 5) return low | shift_and(vld1q_u8(block + 256 + lane), 4 - line, 0x10);
    if constexpr (Bits == 6)
        return low | shift_and(vld1q_u8(block + 256 + line / 4 * 64 + lane), 4 - line % 4 * 2, 0x30);
    return low;
}

template <int Rows>
constexpr int kPairs = Rows / 2 + 1;

// Eight columns of rows 2 * pair and 2 * pair + 1; the row behind the last is the ones.
template <int Rows>
PENSTOCK_INLINE int8x16_t load_pair(const int8_t (&codes)[Rows][kBlock], int span, int pair) {
    const int8x8_t ones = vdup_n_s8(1);
    const int first = pair * 2;
    return vcombine_s8(first < Rows ? vld1_s8(codes[first] + span * kSpan) : ones,
                       first + 1 < Rows ? vld1_s8(codes[first + 1] + span * kSpan) : ones);
}

// Spans First to First + Count of half a tile's block: for each row, and then the ones, dots of 8 outputs.
template <int Bits, int Rows, int First, int Count>
PENSTOCK_INLINE void dots(const uint8_t* block, int half, const int8_t (&codes)[Rows][kBlock],
                          int32x4_t (&dot)[kPairs<Rows> * 2][2]) {
    int32x4_t sums[kPairs<Rows>][kVectors];
#pragma GCC unroll 4
    for (int p = 0; p < kPairs<Rows>; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[p][v] = vdupq_n_s32(0);
#pragma GCC unroll 1
    for (int span = First; span < First + Count; ++span) {
        int8x16_t rows[kPairs<Rows>];
#pragma GCC unroll 4
        for (int p = 0; p < kPairs<Rows>; ++p) rows[p] = load_pair<Rows>(codes, span, p);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            const uint8x16_t weight = unpack<Bits>(block, span, half, v);
#pragma GCC unroll 4
            for (int p = 0; p < kPairs<Rows>; ++p) sums[p][v] = vusmmlaq_s32(sums[p][v], weight, rows[p]);
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPairs<Rows>; ++p)
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            dot[p * 2][i] = vuzp1q_s32(sums[p][i * 2], sums[p][i * 2 + 1]);
            dot[p * 2 + 1][i] = vuzp2q_s32(sums[p][i * 2], sums[p][i * 2 + 1]);
        }
}

PENSTOCK_INLINE float32x4_t load_scales(const uint8_t* from, bool are_half, int quarter) {
    return are_half ? vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from + quarter * 8)))
                    : vreinterpretq_f32_u8(vld1q_u8(from + quarter * 16));
}

// Adds the columns of one group in one block. `acc` is [rows][quarters of the tile].
template <int Bits, int Rows, int Groups, int Group>
PENSTOCK_INLINE void accumulate(const Weight& w, const uint8_t* block, const uint8_t* scales_at,
                                const RowRecord<Rows, Groups>& rows, float32x4_t (&acc)[Rows][kHalves * 2]) {
    constexpr int kCount = kSpans / Groups;
    const bool are_half = w.scale_bits == 16, has_min = w.has_min;
    const uint8_t* mins_at = has_min ? scales_at + scales_bytes(w) : scales_at;
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
        int32x4_t dot[kPairs<Rows> * 2][2];
        dots<Bits, Rows, Group * kCount, kCount>(block, half, rows.codes, dot);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            const int quarter = half * 2 + i;
            const float32x4_t scales = load_scales(scales_at, are_half, quarter);
            const float32x4_t mins = load_scales(mins_at, are_half, quarter);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) {
                const int32_t minus = rows.minus[Group][r];
                const int32x4_t offset = vdupq_n_s32(w.zero_point * (minus >> 16));
                const int32x4_t exact = vmlaq_n_s32(vaddq_s32(dot[r][i], offset), dot[Rows][i],
                                                    static_cast<int16_t>(minus));
                float32x4_t& sum = acc[r][quarter];
                sum = vfmaq_f32(sum, vcvtq_f32_s32(exact), vmulq_n_f32(scales, rows.scales[r]));
                if (has_min) sum = vfmaq_n_f32(sum, mins, rows.scaled_sums[Group][r]);
            }
        }
    }
}

template <int Bits, int Groups, int Rows>
void multiply(const Weight& w, const uint8_t* const* tiles, uint8_t*, const uint8_t* rows, float* results) {
    float32x4_t acc[Rows][kHalves * 2];
    for (int r = 0; r < Rows; ++r)
        for (int quarter = 0; quarter < kHalves * 2; ++quarter) acc[r][quarter] = vdupq_n_f32(0.0f);
    const int64_t header = header_bytes(w), per_record = blocks_per_record(w);
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups>*>(rows);
    const auto* const end = record + w.in_features / kBlock;
    const uint8_t* at = tiles[0];
    while (record != end) {
        const uint8_t* scales_at = at;
        at += header;
        for (int64_t i = 0; i < per_record; ++i, ++record, at += kTile * kBlock * Bits / 8) {
            accumulate<Bits, Rows, Groups, 0>(w, at, scales_at, *record, acc);
            if constexpr (Groups == 2)
                accumulate<Bits, Rows, Groups, 1>(w, at, scales_at + kTile * (w.scale_bits / 8), *record, acc);
        }
    }
    for (int r = 0; r < Rows; ++r)
        for (int quarter = 0; quarter < kHalves * 2; ++quarter)
            vst1q_f32(results + r * kTile + quarter * 4, acc[r][quarter]);
}

template <int Bits, int Groups>
struct Kernels {
    static constexpr int64_t kPreparedBytes = 0;
    static constexpr BlockKernel kFirst[kMaxRows] = {
        multiply<Bits, Groups, 1>, multiply<Bits, Groups, 2>, multiply<Bits, Groups, 3>, multiply<Bits, Groups, 4>,
        multiply<Bits, Groups, 5>, multiply<Bits, Groups, 6>, multiply<Bits, Groups, 7>};
    static constexpr const BlockKernel (&kOther)[kMaxRows] = kFirst;
};

bool has_wide_rows(const Weight&) { return false; }

}  // namespace
}  // namespace penstock::linear

#include "linear/sweep.inl"
