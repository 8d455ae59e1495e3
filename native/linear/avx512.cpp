#include <immintrin.h>

#include <cstring>

#include "linear/linear.hpp"

#define PENSTOCK_ISA avx512

namespace penstock::linear {
namespace {

constexpr int64_t kMaxRows = 6;
constexpr int64_t kTiles = 2;
constexpr int64_t kMaxAlone = 1;
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

// The lines of a block of each tile as the weight has them. A line is a constant once the loop around is unrolled.
template <int Bits>
struct PackedLines {
    const uint8_t* const (&blocks)[kTiles];

    PENSTOCK_INLINE __m512i at(int line, int tile) const {
        const uint8_t* block = blocks[tile];
        if constexpr (Bits == 8) return load(block + line * 64);
        const __m512i pair = load(block + line / 2 * 64);
        const __m512i low = _mm512_and_si512(line % 2 == 0 ? pair : shift_right(pair, 4), _mm512_set1_epi8(15));
        if constexpr (Bits == 5) return shift_and_or(load(block + 256), 4 - line, 0x10, low);
        if constexpr (Bits == 6) return shift_and_or(load(block + 256 + line / 4 * 64), 4 - line % 4 * 2, 0x30, low);
        return low;
    }
};

// The same unpacked, with the sums of the codes and the scales of the block's groups.
template <int Groups>
struct PreparedBlock {
    uint8_t codes[kLines][kTiles][64];
    int32_t sums[Groups][kTiles][kTile];  // pairs of the codes' sum and the zero point
    float scales[Groups][kTiles][kTile];
    float mins[Groups][kTiles][kTile];

    PENSTOCK_INLINE __m512i at(int line, int tile) const { return load(codes[line][tile]); }
};

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

// Of one group, for each tile.
struct Scales {
    __m512 scales[kTiles], mins[kTiles];
    __m512i sums[kTiles];  // pairs of int16: of the codes' sum and the zero point
};

// Adds the columns of one group in one block, which are lines Group * kLines / Groups and on.
template <int Rows, int Groups, int Group, class Lines>
PENSTOCK_INLINE void add_group(__m512 (&acc)[Rows][kTiles], const Lines& lines, const Scales& of, bool has_min,
                               const RowRecord<Rows, Groups>& rows) {
    __m512i dot[Rows][kTiles];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) dot[r][t] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int line = Group * kLines / Groups; line < (Group + 1) * kLines / Groups; ++line) {
        __m512i weight[kTiles];
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) weight[t] = lines.at(line, t);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            int32_t quad;
            std::memcpy(&quad, rows.codes[r] + line * 4, 4);
            const __m512i row = _mm512_set1_epi32(quad);
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) dot[r][t] = _mm512_dpbusd_epi32(dot[r][t], weight[t], row);
        }
    }
    const auto scaled_dot = [&](int r, int t) __attribute__((always_inline)) {
        const __m512i exact = _mm512_dpwssd_epi32(dot[r][t], of.sums[t], _mm512_set1_epi32(rows.minus[Group][r]));
        const __m512 scale = _mm512_mul_ps(of.scales[t], _mm512_set1_ps(rows.scales[r]));
        return _mm512_fmadd_ps(to_float(exact), scale, acc[r][t]);
    };
    if (has_min) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t)
                acc[r][t] = _mm512_fmadd_ps(of.mins[t], _mm512_set1_ps(rows.scaled_sums[Group][r]), scaled_dot(r, t));
    } else {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) acc[r][t] = scaled_dot(r, t);
    }
}

// Of a group whose scales stand at `headers`.
template <int Bits, int Groups, int Group>
PENSTOCK_INLINE Scales packed_scales(const Weight& w, const uint8_t* const (&headers)[kTiles],
                                     const PackedLines<Bits>& lines) {
    constexpr int64_t kOffset = Group * kTile;
    Scales of;
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
        const uint8_t* at = headers[t] + kOffset * (w.scale_bits / 8);
        of.scales[t] = load_scales(at, w.scale_bits == 16);
        of.mins[t] = w.has_min ? load_scales(at + scales_bytes(w), w.scale_bits == 16) : of.scales[t];
        of.sums[t] = _mm512_set1_epi32(w.zero_point << 16);
#pragma GCC unroll 8
        for (int line = Group * kLines / Groups; line < (Group + 1) * kLines / Groups; ++line)
            of.sums[t] = _mm512_dpbusd_epi32(of.sums[t], lines.at(line, t), _mm512_set1_epi8(1));
    }
    return of;
}

template <int Groups>
PENSTOCK_INLINE Scales prepared_scales(const PreparedBlock<Groups>& block, int group) {
    Scales of;
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
        of.scales[t] = _mm512_loadu_ps(block.scales[group][t]);
        of.mins[t] = _mm512_loadu_ps(block.mins[group][t]);
        of.sums[t] = load(block.sums[group][t]);
    }
    return of;
}

// Calls use(headers, lines) for each block of a column.
template <int Bits, class Use>
PENSTOCK_INLINE void for_each_block(const Weight& w, const uint8_t* const* tiles, Use use) {
    const int64_t header = header_bytes(w), per_record = blocks_per_record(w), ahead = kTiles * tile_bytes(w);
    const uint8_t* at[kTiles];
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) at[t] = tiles[t];
    for (int64_t record = 0; record < num_records(w); ++record) {
        const uint8_t* headers[kTiles];
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) {
            headers[t] = at[t];
            prefetch(at[t] + ahead, header);
            at[t] += header;
        }
        for (int64_t i = 0; i < per_record; ++i) {
            use(headers, PackedLines<Bits>{at});
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) {
                prefetch(at[t] + ahead, kTile * kBlock * Bits / 8);
                at[t] += kTile * kBlock * Bits / 8;
            }
        }
    }
}

template <int Bits, int Groups>
void prepare(const Weight& w, const uint8_t* const* tiles, uint8_t* prepared) {
    auto* to = reinterpret_cast<PreparedBlock<Groups>*>(prepared);
    const auto store_scales = [&](const Scales& of, int group) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) {
            _mm512_storeu_ps(to->scales[group][t], of.scales[t]);
            _mm512_storeu_ps(to->mins[group][t], of.mins[t]);
            _mm512_storeu_si512(to->sums[group][t], of.sums[t]);
        }
    };
    for_each_block<Bits>(w, tiles, [&](const uint8_t* const (&headers)[kTiles], const PackedLines<Bits>& lines)
                                       __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int line = 0; line < kLines; ++line)
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) _mm512_storeu_si512(to->codes[line][t], lines.at(line, t));
        store_scales(packed_scales<Bits, Groups, 0>(w, headers, lines), 0);
        if constexpr (Groups == 2) store_scales(packed_scales<Bits, Groups, 1>(w, headers, lines), 1);
        ++to;
    });
}

template <int Rows>
PENSTOCK_INLINE void store_results(const __m512 (&acc)[Rows][kTiles], float* results) {
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) _mm512_storeu_ps(results + (r * kTiles + t) * kTile, acc[r][t]);
}

template <int Groups, int Rows>
void multiply(const Weight& w, const uint8_t* const*, const uint8_t* prepared, const uint8_t* rows, float* results) {
    const auto* block = reinterpret_cast<const PreparedBlock<Groups>*>(prepared);
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups>*>(rows);
    const auto* const end = record + num_blocks(w);
    const bool has_min = w.has_min;
    __m512 acc[Rows][kTiles];
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) acc[r][t] = _mm512_setzero_ps();
    for (; record != end; ++record, ++block) {
        add_group<Rows, Groups, 0>(acc, *block, prepared_scales(*block, 0), has_min, *record);
        if constexpr (Groups == 2)
            add_group<Rows, Groups, 1>(acc, *block, prepared_scales(*block, 1), has_min, *record);
    }
    store_results(acc, results);
}

template <int Bits, int Groups>
void multiply_alone(const Weight& w, const uint8_t* const* tiles, const uint8_t*, const uint8_t* rows,
                    float* results) {
    const auto* record = reinterpret_cast<const RowRecord<1, Groups>*>(rows);
    const bool has_min = w.has_min;
    __m512 acc[1][kTiles];
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) acc[0][t] = _mm512_setzero_ps();
    for_each_block<Bits>(w, tiles, [&](const uint8_t* const (&headers)[kTiles], const PackedLines<Bits>& lines)
                                       __attribute__((always_inline)) {
        add_group<1, Groups, 0>(acc, lines, packed_scales<Bits, Groups, 0>(w, headers, lines), has_min, *record);
        if constexpr (Groups == 2)
            add_group<1, Groups, 1>(acc, lines, packed_scales<Bits, Groups, 1>(w, headers, lines), has_min, *record);
        ++record;
    });
    store_results(acc, results);
}

template <int Bits, int Groups>
struct Kernels {
    static constexpr int64_t kPreparedBytes = sizeof(PreparedBlock<Groups>);
    static constexpr PrepareKernel kPrepare = prepare<Bits, Groups>;
    static constexpr BlockKernel kMultiply[kMaxRows] = {multiply<Groups, 1>, multiply<Groups, 2>, multiply<Groups, 3>,
                                                        multiply<Groups, 4>, multiply<Groups, 5>, multiply<Groups, 6>};
    static constexpr BlockKernel kAlone[kMaxAlone] = {multiply_alone<Bits, Groups>};
};

bool has_wide_rows(const Weight&) { return false; }

}  // namespace
}  // namespace penstock::linear

#include "linear/sweep.inl"
