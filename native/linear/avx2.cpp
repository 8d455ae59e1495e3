#include <immintrin.h>

#include "linear/linear.hpp"

#define PENSTOCK_ISA avx2

namespace penstock::linear {
namespace {

constexpr int64_t kMaxRows = 4;
constexpr int64_t kTiles = 1;
constexpr int kLines = 8;
constexpr int kHalves = 2;  // registers that a tile's outputs take

typedef uint16_t u16x16v __attribute__((vector_size(32)));

PENSTOCK_INLINE __m256i load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

PENSTOCK_INLINE __m256i shifted(__m256i x, int left, int mask) {
    const u16x16v by = left >= 0 ? (u16x16v)x << left : (u16x16v)x >> -left;
    return _mm256_and_si256((__m256i)by, _mm256_set1_epi8(static_cast<char>(mask)));
}

// vpmaddubsw adds two products of a uint8 and an int8 in int16. 8-bit codes would saturate, so they are multiplied as
// two planes of four bits.
template <int Bits>
constexpr int kPlanes = Bits == 8 ? 2 : 1;

// How many of those sums of two int16 holds the sum of: 2 * (2^bits - 1) * 128 times this is below 2^15.
template <int Bits>
constexpr int kLinesInInt16 = Bits == 5 ? 4 : Bits == 6 ? 2 : 8;

template <int Bits>
PENSTOCK_INLINE __m256i unpack(const uint8_t* block, int line, int half, int plane) {
    if constexpr (Bits == 8) return shifted(load(block + line * 64 + half * 32), plane == 0 ? 0 : -4, 15);
    const __m256i low = shifted(load(block + line / 2 * 64 + half * 32), line % 2 == 0 ? 0 : -4, 15);
    if constexpr (Bits == 5) return _mm256_or_si256(low, shifted(load(block + 256 + half * 32), 4 - line, 0x10));
    if constexpr (Bits == 6)
        return _mm256_or_si256(low, shifted(load(block + 256 + line / 4 * 64 + half * 32), 4 - line % 4 * 2, 0x30));
    return low;
}

PENSTOCK_INLINE __m256i sum_pairs(__m256i x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

// Lines First to First + Count of a block, times the same columns of every row: into sums of int32 for each half of the
// tile. Unless the sums of the codes are known, a row of ones behind the others gives them.
template <int Bits, bool SumsKnown, int Rows, int First, int Count>
PENSTOCK_INLINE void add_dots(const uint8_t* block, const int8_t (&codes)[Rows][kBlock], __m256i (&dot)[Rows][kHalves],
                              __m256i (&code_sum)[kHalves]) {
    constexpr int kStep = kLinesInInt16<Bits> < Count ? kLinesInInt16<Bits> : Count;
#pragma GCC unroll 1
    for (int plane = 0; plane < kPlanes<Bits>; ++plane) {
#pragma GCC unroll 4
        for (int step = First; step < First + Count; step += kStep) {
            __m256i part[Rows][kHalves], ones[kHalves];
#pragma GCC unroll 2
            for (int half = 0; half < kHalves; ++half) {
                ones[half] = _mm256_setzero_si256();
#pragma GCC unroll 4
                for (int r = 0; r < Rows; ++r) part[r][half] = _mm256_setzero_si256();
            }
#pragma GCC unroll 8
            for (int line = step; line < step + kStep; ++line) {
                __m256i weight[kHalves];
#pragma GCC unroll 2
                for (int half = 0; half < kHalves; ++half) {
                    weight[half] = unpack<Bits>(block, line, half, plane);
                    const __m256i sums = _mm256_maddubs_epi16(weight[half], _mm256_set1_epi8(1));
                    if constexpr (!SumsKnown) ones[half] = _mm256_add_epi16(ones[half], sums);
                }
#pragma GCC unroll 4
                for (int r = 0; r < Rows; ++r) {
                    int32_t quad;
                    std::memcpy(&quad, codes[r] + line * 4, 4);
                    const __m256i row = _mm256_set1_epi32(quad);
#pragma GCC unroll 2
                    for (int half = 0; half < kHalves; ++half)
                        part[r][half] = _mm256_add_epi16(part[r][half], _mm256_maddubs_epi16(weight[half], row));
                }
            }
            const int shift = plane * 4;
#pragma GCC unroll 2
            for (int half = 0; half < kHalves; ++half) {
#pragma GCC unroll 4
                for (int r = 0; r < Rows; ++r)
                    dot[r][half] = _mm256_add_epi32(dot[r][half], _mm256_slli_epi32(sum_pairs(part[r][half]), shift));
                if constexpr (!SumsKnown)
                    code_sum[half] = _mm256_add_epi32(code_sum[half], _mm256_slli_epi32(sum_pairs(ones[half]), shift));
            }
        }
    }
}

PENSTOCK_INLINE __m256 load_scales(const uint8_t* from, bool are_half, int half) {
    return are_half ? _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + half * 16)))
                    : _mm256_loadu_ps(reinterpret_cast<const float*>(from + half * 32));
}

// Adds the columns of one group in one block. `acc` is [rows][halves of the tile].
template <int Bits, bool SumsKnown, int Rows, int Groups, int Group>
PENSTOCK_INLINE void accumulate(const Weight& w, const uint8_t* block, const uint8_t* scales_at,
                                const RowRecord<Rows, Groups>& rows, int32_t* code_sums,
                                __m256 (&acc)[Rows][kHalves]) {
    constexpr int kCount = kLines / Groups;
    const bool are_half = w.scale_bits == 16;
    auto* sums_at = reinterpret_cast<__m256i*>(code_sums);
    __m256i dot[Rows][kHalves], code_sum[kHalves];
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
        code_sum[half] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) dot[r][half] = _mm256_set1_epi32(rows.offsets[Group][r]);
    }
    add_dots<Bits, SumsKnown, Rows, Group * kCount, kCount>(block, rows.codes, dot, code_sum);
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
        if constexpr (SumsKnown)
            code_sum[half] = _mm256_loadu_si256(sums_at + half);
        else
            _mm256_storeu_si256(sums_at + half, code_sum[half]);
        const __m256 scales = load_scales(scales_at, are_half, half);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
            // A sum of codes is below 2^15: as a pair of int16 it is itself and 0.
            const __m256i zeros = _mm256_madd_epi16(code_sum[half], _mm256_set1_epi32(rows.minus_zero[r]));
            const __m256 exact = _mm256_cvtepi32_ps(_mm256_add_epi32(dot[r][half], zeros));
            acc[r][half] = _mm256_fmadd_ps(exact, _mm256_mul_ps(scales, _mm256_set1_ps(rows.scales[r])), acc[r][half]);
        }
        if (!w.has_min) continue;
        const __m256 mins = load_scales(scales_at + scales_bytes(w), are_half, half);
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
            acc[r][half] = _mm256_fmadd_ps(mins, _mm256_set1_ps(rows.scaled_sums[Group][r]), acc[r][half]);
    }
}

// Asks for what is read when the next tile has its turn. Behind the last there is nothing, which does no harm.
PENSTOCK_INLINE void prefetch(const uint8_t* at, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(at + i), _MM_HINT_T0);
}

template <int Bits, int Groups, bool SumsKnown, int Rows>
void multiply(const Weight& w, const uint8_t* const* tiles, const uint8_t* rows, int32_t* code_sums, float* results) {
    __m256 acc[Rows][kHalves];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
        for (int half = 0; half < kHalves; ++half) acc[r][half] = _mm256_setzero_ps();
    const int64_t header = header_bytes(w), per_record = blocks_per_record(w), ahead = tile_bytes(w);
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups>*>(rows);
    const auto* const end = record + w.in_features / kBlock;
    const uint8_t* at = tiles[0];
    while (record != end) {
        const uint8_t* scales_at = at;
        if constexpr (!SumsKnown) prefetch(at + ahead, header);
        at += header;
        for (int64_t i = 0; i < per_record; ++i, ++record, code_sums += Groups * kTile) {
            accumulate<Bits, SumsKnown, Rows, Groups, 0>(w, at, scales_at, *record, code_sums, acc);
            if constexpr (Groups == 2)
                accumulate<Bits, SumsKnown, Rows, Groups, 1>(w, at, scales_at + kTile * (w.scale_bits / 8), *record,
                                                             code_sums + kTile, acc);
            if constexpr (!SumsKnown) prefetch(at + ahead, kTile * kBlock * Bits / 8);
            at += kTile * kBlock * Bits / 8;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
        for (int half = 0; half < kHalves; ++half) _mm256_storeu_ps(results + r * kTile + half * 8, acc[r][half]);
}

template <int Bits, int Groups, bool SumsKnown>
BlockKernel with_rows(int64_t rows) {
    constexpr BlockKernel kKernels[kMaxRows] = {
        multiply<Bits, Groups, SumsKnown, 1>, multiply<Bits, Groups, SumsKnown, 2>,
        multiply<Bits, Groups, SumsKnown, 3>, multiply<Bits, Groups, SumsKnown, 4>};
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
