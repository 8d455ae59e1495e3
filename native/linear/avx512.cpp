#include <immintrin.h>

#include <cstring>

#include "linear/linear.hpp"

#define PENSTOCK_ISA avx512

namespace penstock::linear {
namespace {

constexpr int64_t kMaxRows = 4;
constexpr int64_t kTiles = 3;
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

// What the kernel for the first rows leaves to the others: unpacked codes, unless they are bytes anyway, and for each
// group the scales and pairs of int16, of the codes' sum and the zero point.
template <int Bits, int Groups>
struct PreparedBlock {
    uint8_t codes[Bits == 8 ? 1 : kLines][kTiles][64];  // one line, unused, of bytes: an array cannot be empty
    int32_t sums[Groups][kTiles][kTile];
    float scales[Groups][kTiles][kTile];
    float mins[Groups][kTiles][kTile];
};

// The lines of a block of each tile as the weight has them. A line is a constant once the loop around is unrolled.
template <int Bits, int Groups, bool Keep>
struct PackedLines {
    const uint8_t* const (&blocks)[kTiles];
    PreparedBlock<Bits, Groups>* prepared;  // written where Keep

    PENSTOCK_INLINE __m512i at(int line, int tile) const {
        const __m512i codes = unpacked(line, tile);
        if constexpr (Keep && Bits != 8) _mm512_storeu_si512(prepared->codes[line][tile], codes);
        return codes;
    }

    PENSTOCK_INLINE __m512i unpacked(int line, int tile) const {
        const uint8_t* block = blocks[tile];
        if constexpr (Bits == 8) return load(block + line * 64);
        const __m512i pair = load(block + line / 2 * 64);
        const __m512i low = _mm512_and_si512(line % 2 == 0 ? pair : shift_right(pair, 4), _mm512_set1_epi8(15));
        if constexpr (Bits == 5) return shift_and_or(load(block + 256), 4 - line, 0x10, low);
        if constexpr (Bits == 6) return shift_and_or(load(block + 256 + line / 4 * 64), 4 - line % 4 * 2, 0x30, low);
        return low;
    }
};

template <int Bits, int Groups>
struct PreparedLines {
    const PreparedBlock<Bits, Groups>& block;

    PENSTOCK_INLINE __m512i at(int line, int tile) const { return load(block.codes[line][tile]); }
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
    __m512i sums[kTiles];
};

// Adds the columns of one group in one block, which are lines Group * kLines / Groups and on. Where Count, the sums are
// those of the zero points alone, and the codes are added to them.
template <bool Count, int Rows, int Groups, int Group, class Lines>
PENSTOCK_INLINE void add_group(__m512 (&acc)[Rows][kTiles], const Lines& lines, Scales& of, bool has_min,
                               const RowRecord<Rows, Groups>& rows) {
    __m512i dot[Rows][kTiles];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) dot[r][t] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int line = Group * kLines / Groups; line < (Group + 1) * kLines / Groups; ++line) {
        __m512i weight[kTiles];
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) {
            weight[t] = lines.at(line, t);
            if constexpr (Count) of.sums[t] = _mm512_dpbusd_epi32(of.sums[t], weight[t], _mm512_set1_epi8(1));
        }
#pragma GCC unroll 4
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
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t)
                acc[r][t] = _mm512_fmadd_ps(of.mins[t], _mm512_set1_ps(rows.scaled_sums[Group][r]), scaled_dot(r, t));
    } else {
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) acc[r][t] = scaled_dot(r, t);
    }
}

// Of a group whose scales stand at `headers`; the sums are those of the zero points.
PENSTOCK_INLINE Scales packed_scales(const Weight& w, const uint8_t* const (&headers)[kTiles], int group) {
    Scales of;
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
        const uint8_t* at = headers[t] + group * kTile * (w.scale_bits / 8);
        of.scales[t] = load_scales(at, w.scale_bits == 16);
        of.mins[t] = w.has_min ? load_scales(at + scales_bytes(w), w.scale_bits == 16) : of.scales[t];
        of.sums[t] = _mm512_set1_epi32(w.zero_point << 16);
    }
    return of;
}

template <int Bits, int Groups>
PENSTOCK_INLINE Scales prepared_scales(const PreparedBlock<Bits, Groups>& block, int group) {
    Scales of;
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
        of.scales[t] = _mm512_loadu_ps(block.scales[group][t]);
        of.mins[t] = _mm512_loadu_ps(block.mins[group][t]);
        of.sums[t] = load(block.sums[group][t]);
    }
    return of;
}

template <int Bits, int Groups>
PENSTOCK_INLINE void store_scales(const Scales& of, PreparedBlock<Bits, Groups>& block, int group) {
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
        _mm512_storeu_ps(block.scales[group][t], of.scales[t]);
        _mm512_storeu_ps(block.mins[group][t], of.mins[t]);
        _mm512_storeu_si512(block.sums[group][t], of.sums[t]);
    }
}

template <int Rows>
PENSTOCK_INLINE void clear(__m512 (&acc)[Rows][kTiles]) {
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) acc[r][t] = _mm512_setzero_ps();
}

template <int Rows>
PENSTOCK_INLINE void store(const __m512 (&acc)[Rows][kTiles], float* results) {
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) _mm512_storeu_ps(results + (r * kTiles + t) * kTile, acc[r][t]);
}

// Calls use(headers, codes) for each block of a column: where the scales and the codes of its tiles are.
template <int Bits, bool Prefetch, class Use>
PENSTOCK_INLINE void for_each_block(const Weight& w, const uint8_t* const* tiles, Use use) {
    const int64_t header = header_bytes(w), per_record = blocks_per_record(w), ahead = kTiles * tile_bytes(w);
    const uint8_t *at[kTiles], *headers[kTiles];
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) at[t] = tiles[t];
    for (int64_t record = 0; record < num_records(w); ++record) {
#pragma GCC unroll 4
        for (int t = 0; t < kTiles; ++t) {
            headers[t] = at[t];
            if (Prefetch) prefetch(at[t] + ahead, header);
            at[t] += header;
        }
        for (int64_t i = 0; i < per_record; ++i) {
            use(headers, at);
#pragma GCC unroll 4
            for (int t = 0; t < kTiles; ++t) {
                if (Prefetch) prefetch(at[t] + ahead, kTile * kBlock * Bits / 8);
                at[t] += kTile * kBlock * Bits / 8;
            }
        }
    }
}

// For the rows that a column meets first.
template <int Bits, int Groups, int Rows, bool Keep>
void multiply_packed(const Weight& w, const uint8_t* const* tiles, uint8_t* prepared, const uint8_t* rows,
                     float* results) {
    using Pointers = const uint8_t* const (&)[kTiles];
    auto* block = reinterpret_cast<PreparedBlock<Bits, Groups>*>(prepared);
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups>*>(rows);
    const bool has_min = w.has_min;
    __m512 acc[Rows][kTiles];
    clear(acc);
    const auto add = [&]<int Group>(Pointers headers, Pointers codes) __attribute__((always_inline)) {
        Scales of = packed_scales(w, headers, Group);
        add_group<true, Rows, Groups, Group>(acc, PackedLines<Bits, Groups, Keep>{codes, block}, of, has_min, *record);
        if constexpr (Keep) store_scales(of, *block, Group);
    };
    for_each_block<Bits, true>(w, tiles, [&](Pointers headers, Pointers codes) __attribute__((always_inline)) {
        add.template operator()<0>(headers, codes);
        if constexpr (Groups == 2) add.template operator()<1>(headers, codes);
        ++record;
        if constexpr (Keep) ++block;
    });
    store(acc, results);
}

template <int Bits, int Groups, int Rows>
void multiply_first(const Weight& w, const uint8_t* const* tiles, uint8_t* prepared, const uint8_t* rows,
                    float* results) {
    (prepared == nullptr ? multiply_packed<Bits, Groups, Rows, false>
                         : multiply_packed<Bits, Groups, Rows, true>)(w, tiles, prepared, rows, results);
}

template <class Lines, int Bits, int Groups, int Rows>
PENSTOCK_INLINE void add_prepared(__m512 (&acc)[Rows][kTiles], const Lines& lines,
                                  const PreparedBlock<Bits, Groups>& block, bool has_min,
                                  const RowRecord<Rows, Groups>& rows) {
    Scales of = prepared_scales(block, 0);
    add_group<false, Rows, Groups, 0>(acc, lines, of, has_min, rows);
    if constexpr (Groups == 1) return;
    of = prepared_scales(block, Groups - 1);
    add_group<false, Rows, Groups, Groups - 1>(acc, lines, of, has_min, rows);
}

// For rows after those, of bytes, ...
template <int Groups, int Rows>
void multiply_bytes(const Weight& w, const uint8_t* const* tiles, uint8_t* prepared, const uint8_t* rows,
                    float* results) {
    using Pointers = const uint8_t* const (&)[kTiles];
    const auto* block = reinterpret_cast<const PreparedBlock<8, Groups>*>(prepared);
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups>*>(rows);
    const bool has_min = w.has_min;
    __m512 acc[Rows][kTiles];
    clear(acc);
    for_each_block<8, false>(w, tiles, [&](Pointers, Pointers codes) __attribute__((always_inline)) {
        add_prepared(acc, PackedLines<8, Groups, false>{codes, nullptr}, *block++, has_min, *record++);
    });
    store(acc, results);
}

// ... and of codes of fewer bits, which are bytes by now.
template <int Groups, int Rows>
void multiply_unpacked(const Weight& w, const uint8_t* const*, uint8_t* prepared, const uint8_t* rows,
                       float* results) {
    const auto* block = reinterpret_cast<const PreparedBlock<4, Groups>*>(prepared);
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups>*>(rows);
    const auto* const end = record + num_blocks(w);
    const bool has_min = w.has_min;
    __m512 acc[Rows][kTiles];
    clear(acc);
    for (; record != end; ++record, ++block)
        add_prepared(acc, PreparedLines<4, Groups>{*block}, *block, has_min, *record);
    store(acc, results);
}

template <int Bits, int Groups, int Rows>
constexpr BlockKernel kMultiplyOther = Bits == 8 ? multiply_bytes<Groups, Rows> : multiply_unpacked<Groups, Rows>;

template <int Bits, int Groups>
struct Kernels {
    static constexpr int64_t kPreparedBytes = sizeof(PreparedBlock<Bits, Groups>);
    static constexpr BlockKernel kFirst[kMaxRows] = {
        multiply_first<Bits, Groups, 1>, multiply_first<Bits, Groups, 2>, multiply_first<Bits, Groups, 3>,
        multiply_first<Bits, Groups, 4>};
    static constexpr BlockKernel kOther[kMaxRows] = {
        kMultiplyOther<Bits, Groups, 1>, kMultiplyOther<Bits, Groups, 2>, kMultiplyOther<Bits, Groups, 3>,
        kMultiplyOther<Bits, Groups, 4>};
};

bool has_wide_rows(const Weight&) { return false; }

}  // namespace
}  // namespace penstock::linear

#include "linear/sweep.inl"
