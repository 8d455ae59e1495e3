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
PENSTOCK_INLINE int8x16_t load_pair(const int8_t* codes, int64_t stride, int pair) {
    const int8x8_t ones = vdup_n_s8(1);
    const int first = pair * 2;
    return vcombine_s8(first < Rows ? vld1_s8(codes + first * stride) : ones,
                       first + 1 < Rows ? vld1_s8(codes + (first + 1) * stride) : ones);
}

// Spans First to First + Count of half a tile's block: for each row, and then the ones, dots of 8 outputs.
template <int Bits, int Rows, int First, int Count>
PENSTOCK_INLINE void dots(const uint8_t* block, int half, const int8_t* codes, int64_t stride,
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
        for (int p = 0; p < kPairs<Rows>; ++p) rows[p] = load_pair<Rows>(codes + span * kSpan, stride, p);
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

// One group's columns of a block: spans First to First + Count.
template <int Bits, int Rows, int First, int Count>
PENSTOCK_INLINE void accumulate(const Weight& w, const uint8_t* at, const uint8_t* scales_at, const QuantizedRows& x,
                                int64_t block, float32x4_t (&acc)[Rows][kHalves * 2]) {
    const int64_t num_blocks = w.in_features / kBlock;
    const int8_t* codes = x.codes + block * kBlock;
    // What the rows contribute besides their codes, so that one register holds it for four rows.
    float row_scales[8], scaled_sums[8];
    int32_t row_zeros[8], offsets[8];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
        const int64_t i = r * num_blocks + block;
        int32_t sum = x.sums[i];
        if constexpr (Count < kSpans)
            sum = vaddlvq_s8(vld1q_s8(codes + r * w.in_features + First * kSpan)) - Count * kSpan * x.zeros[i];
        row_scales[r] = x.scales[i];
        scaled_sums[r] = x.scales[i] * static_cast<float>(sum);
        row_zeros[r] = x.zeros[i];
        offsets[r] = w.zero_point * sum;
    }
    const bool has_min = w.has_min, half_scales = w.scale_bits == 16;
    const uint8_t* mins_at = has_min ? scales_at + scales_bytes(w) : scales_at;
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
        int32x4_t dot[kPairs<Rows> * 2][2];
        dots<Bits, Rows, First, Count>(at, half, codes, w.in_features, dot);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            const int quarter = half * 2 + i;
            const float32x4_t scales = load_scales(scales_at, half_scales, quarter);
            const float32x4_t mins = load_scales(mins_at, half_scales, quarter);
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) {
                const int32x4_t exact =
                    vmlsq_n_s32(vsubq_s32(dot[r][i], vdupq_n_s32(offsets[r])), dot[Rows][i], row_zeros[r]);
                float32x4_t& sum = acc[r][quarter];
                sum = vfmaq_f32(sum, vcvtq_f32_s32(exact), vmulq_n_f32(scales, row_scales[r]));
                if (has_min) sum = vfmaq_n_f32(sum, mins, scaled_sums[r]);
            }
        }
    }
}

template <int Bits, bool HalfBlocks, int Rows>
void multiply(const Weight& w, const uint8_t* const* tiles, const QuantizedRows& x, float* results) {
    float32x4_t acc[Rows][kHalves * 2];
    for (int r = 0; r < Rows; ++r)
        for (int quarter = 0; quarter < kHalves * 2; ++quarter) acc[r][quarter] = vdupq_n_f32(0.0f);
    const int64_t per_record = blocks_per_record(w);
    int64_t block = 0;
    const uint8_t* record = tiles[0];
    for (int64_t i = 0; i < num_records(w); ++i, record += record_bytes(w)) {
        for (int64_t b = 0; b < per_record; ++b, ++block) {
            const uint8_t* at = record + header_bytes(w) + b * block_bytes(w);
            if constexpr (HalfBlocks) {
                accumulate<Bits, Rows, 0, 2>(w, at, record, x, block, acc);
                accumulate<Bits, Rows, 2, 2>(w, at, record + kTile * (w.scale_bits / 8), x, block, acc);
            } else {
                accumulate<Bits, Rows, 0, 4>(w, at, record, x, block, acc);
            }
        }
    }
    for (int r = 0; r < Rows; ++r)
        for (int quarter = 0; quarter < kHalves * 2; ++quarter)
            vst1q_f32(results + r * kTile + quarter * 4, acc[r][quarter]);
}

template <int Bits, bool HalfBlocks>
BlockKernel with_rows(int64_t rows) {
    constexpr BlockKernel kKernels[kMaxRows] = {
        multiply<Bits, HalfBlocks, 1>, multiply<Bits, HalfBlocks, 2>, multiply<Bits, HalfBlocks, 3>,
        multiply<Bits, HalfBlocks, 4>, multiply<Bits, HalfBlocks, 5>, multiply<Bits, HalfBlocks, 6>,
        multiply<Bits, HalfBlocks, 7>};
    return kKernels[rows - 1];
}

BlockKernel block_kernel(const Weight& w, int64_t rows) {
    const bool halves = w.group_size < kBlock;
    switch (w.code_bits) {
        case 4:
            return halves ? with_rows<4, true>(rows) : with_rows<4, false>(rows);
        case 5:
            return halves ? with_rows<5, true>(rows) : with_rows<5, false>(rows);
        case 6:
            return halves ? with_rows<6, true>(rows) : with_rows<6, false>(rows);
        default:
            return halves ? with_rows<8, true>(rows) : with_rows<8, false>(rows);
    }
}

}  // namespace
}  // namespace penstock::linear

#include "linear/sweep.inl"
