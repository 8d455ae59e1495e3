#include <immintrin.h>

#include "linear/linear.hpp"

#define PENSTOCK_ISA avx512

namespace penstock::linear {
namespace {

constexpr int64_t kMaxRows = 6;
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

// Asks for what is read when the next column of tiles has its turn. Behind the last there is nothing, which does no
// harm.
PENSTOCK_INLINE void prefetch(const uint8_t* at, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(at + i), _MM_HINT_T0);
}

// Adds the columns of one group in one block, which are lines Group * kLines / Groups and on.
template <int Bits, bool SumsKnown, int Rows, int Groups, int Group>
PENSTOCK_INLINE void accumulate(__m512 (&acc)[Rows][kTiles], const uint8_t* const (&blocks)[kTiles],
                                const RowRecord<Rows, Groups>& rows, int32_t* code_sums, const __m512 (&scales)[kTiles],
                                const __m512 (&mins)[kTiles], bool has_min) {
    constexpr int kFirst = Group * kLines / Groups, kBehind = (Group + 1) * kLines / Groups;
    __m512i dot[Rows][kTiles];
    __m512i code_sum[kTiles];  // of the weight's codes
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) dot[r][t] = _mm512_set1_epi32(rows.offsets[Group][r]);
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) code_sum[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int line = kFirst; line < kBehind; ++line) {
        __m512i weight[kTiles];
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) {
            weight[t] = unpack_line<Bits>(blocks[t], line);
            if constexpr (!SumsKnown) code_sum[t] = _mm512_dpbusd_epi32(code_sum[t], weight[t], _mm512_set1_epi8(1));
        }
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            int32_t quad;
            std::memcpy(&quad, rows.codes[r] + line * 4, 4);
            const __m512i row = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) dot[r][t] = _mm512_dpbusd_epi32(dot[r][t], weight[t], row);
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
        if constexpr (SumsKnown)
            code_sum[t] = load(code_sums + t * kTile);
        else
            _mm512_storeu_si512(code_sums + t * kTile, code_sum[t]);
    }
    const auto scaled_dot = [&](int r, int t) __attribute__((always_inline)) {
        // A sum of codes is below 2^15: as a pair of int16 it is itself and 0.
        const __m512i exact = _mm512_dpwssd_epi32(dot[r][t], code_sum[t], _mm512_set1_epi32(rows.minus_zero[r]));
        return _mm512_fmadd_ps(to_float(exact), _mm512_mul_ps(scales[t], _mm512_set1_ps(rows.scales[r])), acc[r][t]);
    };
    if (has_min) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t)
                acc[r][t] = _mm512_fmadd_ps(mins[t], _mm512_set1_ps(rows.scaled_sums[Group][r]), scaled_dot(r, t));
    } else {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) acc[r][t] = scaled_dot(r, t);
    }
}

PENSTOCK_INLINE void load_scales(const Weight& w, const uint8_t* const (&at)[kTiles], int64_t offset,
                                 __m512 (&scales)[kTiles], __m512 (&mins)[kTiles]) {
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
        scales[t] = load_scales(at[t] + offset, w.scale_bits == 16);
        mins[t] = w.has_min ? load_scales(at[t] + offset + scales_bytes(w), w.scale_bits == 16) : scales[t];
    }
}

template <int Bits, int Groups, bool SumsKnown, int Rows>
void multiply(const Weight& w, const uint8_t* const* tiles, const uint8_t* rows, int32_t* code_sums, float* results) {
    __m512 acc[Rows][kTiles];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) acc[r][t] = _mm512_setzero_ps();
    const uint8_t* at[kTiles];
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) at[t] = tiles[t];
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups>*>(rows);
    const auto* const end = record + w.in_features / kBlock;
    const int64_t header = header_bytes(w), per_record = blocks_per_record(w), ahead = kTiles * tile_bytes(w);
    while (record != end) {
        __m512 scales[kTiles], mins[kTiles];
        const uint8_t* headers[kTiles];
        load_scales(w, at, 0, scales, mins);
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) {
            headers[t] = at[t];
            if constexpr (!SumsKnown) prefetch(at[t] + ahead, header);
            at[t] += header;
        }
        for (int64_t i = 0; i < per_record; ++i, ++record, code_sums += Groups * kTiles * kTile) {
            accumulate<Bits, SumsKnown, Rows, Groups, 0>(acc, at, *record, code_sums, scales, mins, w.has_min);
            if constexpr (Groups == 2) {
                load_scales(w, headers, kTile * w.scale_bits / 8, scales, mins);
                accumulate<Bits, SumsKnown, Rows, Groups, 1>(acc, at, *record, code_sums + kTiles * kTile, scales, mins,
                                                              w.has_min);
            }
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) {
                if constexpr (!SumsKnown) prefetch(at[t] + ahead, kTile * kBlock * Bits / 8);
                at[t] += kTile * kBlock * Bits / 8;
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) _mm512_storeu_ps(results + (r * kTiles + t) * kTile, acc[r][t]);
}

template <int Bits, int Groups, bool SumsKnown>
BlockKernel with_rows(int64_t rows) {
    constexpr BlockKernel kKernels[kMaxRows] = {
        multiply<Bits, Groups, SumsKnown, 1>, multiply<Bits, Groups, SumsKnown, 2>,
        multiply<Bits, Groups, SumsKnown, 3>, multiply<Bits, Groups, SumsKnown, 4>,
        multiply<Bits, Groups, SumsKnown, 5>, multiply<Bits, Groups, SumsKnown, 6>};
    return kKernels[rows - 1];
}

template <int Bits>
BlockKernel with_bits(int64_t groups, int64_t rows, bool sums_known) {
    if (groups == 1) return sums_known ? with_rows<Bits, 1, true>(rows) : with_rows<Bits, 1, false>(rows);
    return sums_known ? with_rows<Bits, 2, true>(rows) : with_rows<Bits, 2, false>(rows);
}

BlockKernel block_kernel(const Weight& w, int64_t rows, bool sums_known) {
    switch (w.code_bits) {
        case 4:
            return with_bits<4>(groups_per_record(w), rows, sums_known);
        case 5:
            return with_bits<5>(groups_per_record(w), rows, sums_known);
        case 6:
            return with_bits<6>(groups_per_record(w), rows, sums_known);
        default:
            return with_bits<8>(groups_per_record(w), rows, sums_known);
    }
}

}  // namespace
}  // namespace penstock::linear

#include "linear/sweep.inl"
