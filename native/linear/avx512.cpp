#include <immintrin.h>

#include "linear/linear.hpp"

#define PENSTOCK_ISA avx512

namespace penstock::linear {
namespace {

constexpr int64_t kMaxRows = 8;
constexpr int64_t kTiles = 2;
constexpr int kLines = 8;

typedef uint16_t u16x32 __attribute__((vector_size(64)));

PENSTOCK_INLINE __m512i load(const void* from) { return _mm512_loadu_si512(from); }

PENSTOCK_INLINE __m512i shift_left(__m512i x, int by) { return (__m512i)((u16x32)x << by); }
PENSTOCK_INLINE __m512i shift_right(__m512i x, int by) { return (__m512i)((u16x32)x >> by); }
// (x shifted by `by`, to the left when positive) & mask | rest. Bits that cross a byte are masked away.
PENSTOCK_INLINE __m512i shift_and_or(__m512i x, int by, int mask, __m512i rest) {
    const __m512i shifted = by >= 0 ? shift_left(x, by) : shift_right(x, -by);
    return _mm512_ternarylogic_epi64(shifted, _mm512_set1_epi8(static_cast<char>(mask)), rest, 0xea);
}

// The codes of line `line` of a block; `line` is a constant once the loop around is unrolled.
template <int Bits>
PENSTOCK_INLINE __m512i unpack_line(const uint8_t* block, int line) {
    if constexpr (Bits == 8) return load(block + line * 64);
    const __m512i pair = load(block + line / 2 * 64);
    const __m512i low = _mm512_and_si512(line % 2 == 0 ? pair : shift_right(pair, 4), _mm512_set1_epi8(15));
    if constexpr (Bits == 5) return shift_and_or(load(block + 256), 4 - line, 0x10, low);
    if constexpr (Bits == 6) return shift_and_or(load(block + 256 + line / 4 * 64), 4 - line % 4 * 2, 0x30, low);
    return low;
}

PENSTOCK_INLINE __m512 to_float(__m512i x) { return (__m512)__builtin_convertvector((__v16si)x, __v16sf); }

PENSTOCK_INLINE __m512 load_scales(const uint8_t* from, bool half) {
    return half ? _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))
                : _mm512_loadu_ps(from);
}

// The lower half of each lane, as the first of a pair of int16 whose second is 0.
PENSTOCK_INLINE __m512i low_of_pair(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi32(0xffff)); }

// What one block kernel holds: accumulators of Rows x kTiles outputs of 16.
template <int Rows>
struct Accumulators {
    __m512 of[Rows][kTiles];
};

// Lines First to First + Count of a block of every tile, times the same columns of every row.
template <int Bits, int Rows, int First, int Count>
struct Dots {
    __m512i dot[Rows][kTiles];
    __m512i code_sum[kTiles];  // of the weight's codes, for the zeros of the rows

    PENSTOCK_INLINE Dots(const uint8_t* const (&blocks)[kTiles], const int8_t* codes, int64_t stride) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) dot[r][t] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) code_sum[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int line = First; line < First + Count; ++line) {
            __m512i weight[kTiles];
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) {
                weight[t] = unpack_line<Bits>(blocks[t], line);
                code_sum[t] = _mm512_dpbusd_epi32(code_sum[t], weight[t], _mm512_set1_epi8(1));
            }
#pragma GCC unroll 8
            for (int r = 0; r < Rows; ++r) {
                int32_t quad;
                std::memcpy(&quad, codes + r * stride + line * 4, 4);
                const __m512i row = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
                for (int t = 0; t < kTiles; ++t) dot[r][t] = _mm512_dpbusd_epi32(dot[r][t], weight[t], row);
            }
        }
    }
};

// Adds the dots of a group's columns in one block. `sum` is that of the row's code - zero in these columns.
template <int Rows, class Dots>
PENSTOCK_INLINE void accumulate(Accumulators<Rows>& acc, Dots& dots, int r, float scale, int32_t zero, __m512i sum,
                                const __m512 (&scales)[kTiles], const __m512 (&mins)[kTiles], const Weight& w) {
    const __m512 row_scale = _mm512_set1_ps(scale);
    const __m512i row_zero = _mm512_set1_epi32(zero);
    const __m512 scaled_sum = _mm512_mul_ps(row_scale, to_float(sum));
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
        __m512i dot = _mm512_dpwssd_epi32(dots.dot[r][t], dots.code_sum[t], row_zero);
        if (w.zero_point != 0) dot = _mm512_sub_epi32(dot, _mm512_mullo_epi32(sum, _mm512_set1_epi32(w.zero_point)));
        acc.of[r][t] = _mm512_fmadd_ps(to_float(dot), _mm512_mul_ps(scales[t], row_scale), acc.of[r][t]);
        if (w.has_min) acc.of[r][t] = _mm512_fmadd_ps(mins[t], scaled_sum, acc.of[r][t]);
    }
}

template <int Bits, bool Halves, int Rows>
void multiply(const Weight& w, const uint8_t* const* tiles, const QuantizedRows& x, float* results) {
    Accumulators<Rows> acc;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) acc.of[r][t] = _mm512_setzero_ps();
    const int64_t stride = w.in_features, num_blocks = stride / kBlock;
    const int64_t header = header_bytes(w), to_mins = scales_bytes(w), per_record = blocks_per_record(w);
    const bool half = w.scale_bits == 16;
    const int64_t half_step = kTile * w.scale_bits / 8;
    const uint8_t* at[kTiles];
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) at[t] = tiles[t];
    for (int64_t block = 0; block < num_blocks;) {
        const uint8_t* headers[kTiles];
        __m512 scales[kTiles], mins[kTiles];
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) {
            headers[t] = at[t];
            scales[t] = load_scales(at[t], half);
            mins[t] = w.has_min ? load_scales(at[t] + to_mins, half) : _mm512_setzero_ps();
            at[t] += header;
        }
        for (const int64_t end = block + per_record; block < end; ++block) {
            const int8_t* codes = x.codes + block * kBlock;
            if constexpr (!Halves) {
                Dots<Bits, Rows, 0, kLines> dots(at, codes, stride);
#pragma GCC unroll 4
                for (int t = 0; t < kTiles; ++t)
                    dots.code_sum[t] = low_of_pair(_mm512_sub_epi32(_mm512_setzero_si512(), dots.code_sum[t]));
#pragma GCC unroll 8
                for (int r = 0; r < Rows; ++r) {
                    const int64_t i = r * num_blocks + block;
                    accumulate(acc, dots, r, x.scales[i], x.zeros[i], _mm512_set1_epi32(x.sums[i]), scales, mins, w);
                }
            } else {
                __m512i first_sums[Rows];
                Dots<Bits, Rows, 0, kLines / 2> dots(at, codes, stride);
#pragma GCC unroll 4
                for (int t = 0; t < kTiles; ++t)
                    dots.code_sum[t] = low_of_pair(_mm512_sub_epi32(_mm512_setzero_si512(), dots.code_sum[t]));
#pragma GCC unroll 8
                for (int r = 0; r < Rows; ++r) {
                    const int64_t i = r * num_blocks + block;
                    int32_t sum = -16 * x.zeros[i];
                    for (int c = 0; c < 16; ++c) sum += codes[r * stride + c];
                    first_sums[r] = _mm512_set1_epi32(sum);
                    accumulate(acc, dots, r, x.scales[i], x.zeros[i], first_sums[r], scales, mins, w);
                }
#pragma GCC unroll 4
                for (int t = 0; t < kTiles; ++t) {
                    scales[t] = load_scales(headers[t] + half_step, half);
                    if (w.has_min) mins[t] = load_scales(headers[t] + to_mins + half_step, half);
                }
                Dots<Bits, Rows, kLines / 2, kLines / 2> rest(at, codes, stride);
#pragma GCC unroll 4
                for (int t = 0; t < kTiles; ++t)
                    rest.code_sum[t] = low_of_pair(_mm512_sub_epi32(_mm512_setzero_si512(), rest.code_sum[t]));
#pragma GCC unroll 8
                for (int r = 0; r < Rows; ++r) {
                    const int64_t i = r * num_blocks + block;
                    accumulate(acc, rest, r, x.scales[i], x.zeros[i],
                               _mm512_sub_epi32(_mm512_set1_epi32(x.sums[i]), first_sums[r]), scales, mins, w);
                }
            }
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) at[t] += kTile * kBlock * Bits / 8;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) _mm512_storeu_ps(results + (r * kTiles + t) * kTile, acc.of[r][t]);
}

template <int Bits, bool Halves>
BlockKernel with_rows(int64_t rows) {
    constexpr BlockKernel kKernels[kMaxRows] = {
        multiply<Bits, Halves, 1>, multiply<Bits, Halves, 2>, multiply<Bits, Halves, 3>, multiply<Bits, Halves, 4>,
        multiply<Bits, Halves, 5>, multiply<Bits, Halves, 6>, multiply<Bits, Halves, 7>, multiply<Bits, Halves, 8>};
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
