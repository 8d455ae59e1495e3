#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "linear/linear.hpp"

#define PENSTOCK_ISA avx2

namespace penstock::linear {
namespace {

constexpr int64_t kMaxRows = 4;
constexpr int64_t kTiles = 1;
constexpr int kHalves = 2;  // registers that a tile's outputs take

typedef uint16_t u16x16v __attribute__((vector_size(32)));

// vpmaddubsw adds two products of a uint8 and an int8 in int16, a line of four columns at a time. 8-bit codes would
// saturate: they are multiplied as int16 with wide rows, a line of two columns at a time.
template <int Bits>
constexpr bool kWide = Bits == 8;
template <int Bits>
constexpr int kLines = kWide<Bits> ? 16 : 8;

// How many sums of two products int16 holds the sum of: 2 * (2^bits - 1) * 128 times this is below 2^15.
template <int Bits>
constexpr int kLinesInInt16 = Bits == 5 ? 4 : Bits == 6 ? 2 : 8;
// How many codes a byte holds the sum of.
template <int Bits>
constexpr int kLinesInByte = Bits == 6 ? 4 : 8;

PENSTOCK_INLINE __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
PENSTOCK_INLINE void store(void* to, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(to), x); }

// The compiler may not put off or regroup the additions before: it would keep all products for a tree of them, in
// memory.
PENSTOCK_INLINE void keep(__m256i& sum) { asm("" : "+x"(sum)); }

PENSTOCK_INLINE __m256i shifted(__m256i x, int left, int mask) {
    const u16x16v by = left >= 0 ? (u16x16v)x << left : (u16x16v)x >> -left;
    return _mm256_and_si256((__m256i)by, _mm256_set1_epi8(static_cast<char>(mask)));
}

PENSTOCK_INLINE __m256i sum_pairs(__m256i x) { return _mm256_madd_epi16(x, _mm256_set1_epi16(1)); }

// The lines of a block as the weight has them.
template <int Bits>
struct PackedLines {
    const uint8_t* block;

    PENSTOCK_INLINE __m256i at(int line, int half) const {
        if constexpr (Bits == 8) {  // columns 0 and 1 of four, or 2 and 3, as int16
            const __m256i pair = _mm256_set_epi8(-1, 13, -1, 12, -1, 9, -1, 8, -1, 5, -1, 4, -1, 1, -1, 0,  //
                                                 -1, 13, -1, 12, -1, 9, -1, 8, -1, 5, -1, 4, -1, 1, -1, 0);
            const __m256i which = line % 2 == 0 ? pair : _mm256_or_si256(pair, _mm256_set1_epi16(2));
            return _mm256_shuffle_epi8(load(block + line / 2 * 64 + half * 32), which);
        }
        const __m256i low = shifted(load(block + line / 2 * 64 + half * 32), line % 2 == 0 ? 0 : -4, 15);
        if constexpr (Bits == 5) return _mm256_or_si256(low, shifted(load(block + 256 + half * 32), 4 - line, 0x10));
        if constexpr (Bits == 6)
            return _mm256_or_si256(low,
                                   shifted(load(block + 256 + line / 4 * 64 + half * 32), 4 - line % 4 * 2, 0x30));
        return low;
    }
};

// The same unpacked.
struct PreparedLines {
    const uint8_t* codes;

    PENSTOCK_INLINE __m256i at(int line, int half) const { return load(codes + line * 64 + half * 32); }
};

template <int Bits, int Groups>
struct PreparedBlock {
    uint8_t codes[kLines<Bits>][64];
    int32_t sums[Groups][kTile];  // pairs of the codes' sum and the zero point
    float scales[Groups][kTile];
    float mins[Groups][kTile];
};

// Adds the codes of lines First to First + Count for each half of the tile.
template <int Bits, int First, int Count>
PENSTOCK_INLINE void add_code_sums(const PackedLines<Bits>& lines, __m256i (&sums)[kHalves]) {
    constexpr int kStep = kLinesInByte<Bits> < Count ? kLinesInByte<Bits> : Count;
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
        __m256i pairs = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int step = First; step < First + Count; step += kStep) {
            __m256i bytes = lines.at(step, half);
#pragma GCC unroll 8
            for (int line = step + 1; line < step + kStep; ++line) bytes = _mm256_add_epi8(bytes, lines.at(line, half));
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)));
        }
        sums[half] = _mm256_add_epi32(sums[half], sum_pairs(pairs));
    }
}

// Lines First to First + Count times the same columns of every row. Registers hold the sums, two for each row.
template <int Bits, int Rows, int First, int Count, class Lines, class Code>
PENSTOCK_INLINE void dots(const Lines& lines, const Code (&codes)[Rows][kBlock], __m256i (&dot)[Rows][kHalves]) {
    constexpr int kStep = kWide<Bits> || kLinesInInt16<Bits> > Count ? Count : kLinesInInt16<Bits>;
#pragma GCC unroll 4
    for (int step = First; step < First + Count; step += kStep) {
        __m256i part[Rows][kHalves];
#pragma GCC unroll 16
        for (int line = step; line < step + kStep; ++line) {
            __m256i weight[kHalves];
#pragma GCC unroll 2
            for (int half = 0; half < kHalves; ++half) weight[half] = lines.at(line, half);
#pragma GCC unroll 4
            for (int r = 0; r < Rows; ++r) {
                int32_t columns;
                std::memcpy(&columns, reinterpret_cast<const uint8_t*>(codes[r]) + line * 4, 4);
                const __m256i row = _mm256_set1_epi32(columns);
#pragma GCC unroll 2
                for (int half = 0; half < kHalves; ++half) {
                    __m256i& sum = part[r][half];
                    if constexpr (kWide<Bits>) {
                        const __m256i products = _mm256_madd_epi16(weight[half], row);
                        sum = line == step ? products : _mm256_add_epi32(sum, products);
                    } else {
                        const __m256i products = _mm256_maddubs_epi16(weight[half], row);
                        sum = line == step ? products : _mm256_add_epi16(sum, products);
                    }
                    keep(sum);
                }
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
            for (int half = 0; half < kHalves; ++half) {
                const __m256i sum = kWide<Bits> ? part[r][half] : sum_pairs(part[r][half]);
                dot[r][half] = step == First ? sum : _mm256_add_epi32(dot[r][half], sum);
            }
    }
}

// Of one group, for each half of the tile.
struct Scales {
    __m256 scales[kHalves], mins[kHalves];
    __m256i sums[kHalves];  // pairs of int16: of the codes' sum and the zero point
};

// Adds the dots of a group to the results, which stay in memory: other sums need the registers.
template <bool HasMin, int Rows, int Groups, class Code>
PENSTOCK_INLINE void add_dots(const __m256i (&dot)[Rows][kHalves], const Scales& of,
                              const RowRecord<Rows, Groups, Code>& rows, int group, float* results) {
    asm("" : "+r"(results));  // or the compiler keeps a second copy of them, and the loop waits for its stores
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
        const __m256i minus = _mm256_set1_epi32(rows.minus[group][r]);
        const __m256 scale = _mm256_set1_ps(rows.scales[r]);
        const __m256 scaled_sum = _mm256_set1_ps(rows.scaled_sums[group][r]);
        __m256 acc[kHalves];
#pragma GCC unroll 2
        for (int half = 0; half < kHalves; ++half) {
            const __m256i exact = _mm256_add_epi32(dot[r][half], _mm256_madd_epi16(of.sums[half], minus));
            acc[half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), _mm256_mul_ps(of.scales[half], scale),
                                        _mm256_loadu_ps(results + r * kTile + half * 8));
            if (HasMin) acc[half] = _mm256_fmadd_ps(of.mins[half], scaled_sum, acc[half]);
        }
#pragma GCC unroll 2
        for (int half = 0; half < kHalves; ++half) _mm256_storeu_ps(results + r * kTile + half * 8, acc[half]);
    }
}

// The columns of one group in one block.
template <int Bits, int Rows, int Groups, int Group, class Lines, class Code>
PENSTOCK_INLINE void add_group(const Lines& lines, const Scales& of, bool has_min,
                               const RowRecord<Rows, Groups, Code>& rows, float* results) {
    constexpr int kCount = kLines<Bits> / Groups;
    __m256i dot[Rows][kHalves];
    dots<Bits, Rows, Group * kCount, kCount>(lines, rows.codes, dot);
    if (has_min)
        add_dots<true>(dot, of, rows, Group, results);
    else
        add_dots<false>(dot, of, rows, Group, results);
}

PENSTOCK_INLINE __m256 load_scales(const uint8_t* from, bool are_half, int half) {
    return are_half ? _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + half * 16)))
                    : _mm256_loadu_ps(reinterpret_cast<const float*>(from + half * 32));
}

// Of the group that has its scales and codes there.
template <int Bits, int Groups, int Group>
PENSTOCK_INLINE Scales packed_scales(const Weight& w, const uint8_t* scales_at, const PackedLines<Bits>& lines) {
    constexpr int kCount = kLines<Bits> / Groups;
    const bool are_half = w.scale_bits == 16;
    scales_at += Group * kTile * (w.scale_bits / 8);
    Scales of;
    for (int half = 0; half < kHalves; ++half) {
        of.sums[half] = _mm256_set1_epi32(w.zero_point << 16);
        of.scales[half] = load_scales(scales_at, are_half, half);
        of.mins[half] = w.has_min ? load_scales(scales_at + scales_bytes(w), are_half, half) : _mm256_setzero_ps();
    }
    if constexpr (!kWide<Bits>) add_code_sums<Bits, Group * kCount, kCount>(lines, of.sums);
    return of;
}

template <int Bits, int Groups>
PENSTOCK_INLINE Scales prepared_scales(const PreparedBlock<Bits, Groups>& block, int group) {
    Scales of;
    for (int half = 0; half < kHalves; ++half) {
        of.sums[half] = load(block.sums[group] + half * 8);
        of.scales[half] = _mm256_loadu_ps(block.scales[group] + half * 8);
        of.mins[half] = _mm256_loadu_ps(block.mins[group] + half * 8);
    }
    return of;
}

// Asks for what is read when the next tile has its turn. Behind the last there is nothing, which does no harm.
PENSTOCK_INLINE void prefetch(const uint8_t* at, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(at + i), _MM_HINT_T0);
}

// Calls use(scales, lines) for each block of a tile.
template <int Bits, class Use>
PENSTOCK_INLINE void for_each_block(const Weight& w, const uint8_t* at, Use use) {
    const int64_t header = header_bytes(w), per_record = blocks_per_record(w), ahead = tile_bytes(w);
    const uint8_t* const end = at + ahead;
    while (at != end) {
        const uint8_t* scales_at = at;
        prefetch(at + ahead, header);
        at += header;
        for (int64_t i = 0; i < per_record; ++i, at += kTile * kBlock * Bits / 8) {
            prefetch(at + ahead, kTile * kBlock * Bits / 8);
            use(scales_at, PackedLines<Bits>{at});
        }
    }
}

template <int Bits, int Groups, int Group>
PENSTOCK_INLINE void prepare_group(const Weight& w, const uint8_t* scales_at, const PackedLines<Bits>& lines,
                                   PreparedBlock<Bits, Groups>& to) {
    const Scales of = packed_scales<Bits, Groups, Group>(w, scales_at, lines);
    for (int half = 0; half < kHalves; ++half) {
        store(to.sums[Group] + half * 8, of.sums[half]);
        _mm256_storeu_ps(to.scales[Group] + half * 8, of.scales[half]);
        _mm256_storeu_ps(to.mins[Group] + half * 8, of.mins[half]);
    }
}

template <int Bits, int Groups>
PENSTOCK_INLINE void prepare(const Weight& w, const uint8_t* scales_at, const PackedLines<Bits>& lines,
                             PreparedBlock<Bits, Groups>& to) {
#pragma GCC unroll 16
    for (int line = 0; line < kLines<Bits>; ++line)
        for (int half = 0; half < kHalves; ++half) store(to.codes[line] + half * 32, lines.at(line, half));
    prepare_group<Bits, Groups, 0>(w, scales_at, lines, to);
    if constexpr (Groups == 2) prepare_group<Bits, Groups, 1>(w, scales_at, lines, to);
    asm("" : "+m"(to));  // or what is read back next would lie in the registers that sums need
}

template <int Bits, int Groups, int Rows, class Code>
PENSTOCK_INLINE void add_block(const PreparedBlock<Bits, Groups>& block, bool has_min,
                               const RowRecord<Rows, Groups, Code>& rows, float* results) {
    const PreparedLines lines{block.codes[0]};
    add_group<Bits, Rows, Groups, 0>(lines, prepared_scales(block, 0), has_min, rows, results);
    if constexpr (Groups == 2)
        add_group<Bits, Rows, Groups, 1>(lines, prepared_scales(block, 1), has_min, rows, results);
}

template <int Rows>
PENSTOCK_INLINE void clear(float* results) {
#pragma GCC unroll 8
    for (int i = 0; i < Rows * kHalves; ++i) _mm256_storeu_ps(results + i * 8, _mm256_setzero_ps());
}

template <int Bits>
using CodeOf = std::conditional_t<kWide<Bits>, int16_t, int8_t>;

template <int Bits, int Groups, int Rows>
void multiply_first(const Weight& w, const uint8_t* const* tiles, uint8_t* prepared, const uint8_t* rows,
                    float* results) {
    alignas(64) PreparedBlock<Bits, Groups> own;
    auto* block = prepared == nullptr ? &own : reinterpret_cast<PreparedBlock<Bits, Groups>*>(prepared);
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups, CodeOf<Bits>>*>(rows);
    const bool has_min = w.has_min;
    clear<Rows>(results);
    for_each_block<Bits>(w, tiles[0], [&](const uint8_t* scales_at, const PackedLines<Bits>& lines)
                                          __attribute__((always_inline)) {
        prepare(w, scales_at, lines, *block);
        add_block(*block, has_min, *record, results);
        if (prepared != nullptr) ++block;
        ++record;
    });
}

template <int Bits, int Groups, int Rows>
void multiply_other(const Weight& w, const uint8_t* const*, uint8_t* prepared, const uint8_t* rows, float* results) {
    const auto* block = reinterpret_cast<const PreparedBlock<Bits, Groups>*>(prepared);
    const auto* record = reinterpret_cast<const RowRecord<Rows, Groups, CodeOf<Bits>>*>(rows);
    const auto* const end = record + num_blocks(w);
    const bool has_min = w.has_min;
    clear<Rows>(results);
    for (; record != end; ++record, ++block) add_block(*block, has_min, *record, results);
}

// One row is never the first of several blocks of rows: nothing has to be stored.
template <int Bits, int Groups>
void multiply_one(const Weight& w, const uint8_t* const* tiles, uint8_t*, const uint8_t* rows, float* results) {
    const auto* record = reinterpret_cast<const RowRecord<1, Groups, CodeOf<Bits>>*>(rows);
    const bool has_min = w.has_min;
    clear<1>(results);
    for_each_block<Bits>(w, tiles[0], [&](const uint8_t* scales_at, const PackedLines<Bits>& lines)
                                          __attribute__((always_inline)) {
        add_group<Bits, 1, Groups, 0>(lines, packed_scales<Bits, Groups, 0>(w, scales_at, lines), has_min, *record,
                                      results);
        if constexpr (Groups == 2)
            add_group<Bits, 1, Groups, 1>(lines, packed_scales<Bits, Groups, 1>(w, scales_at, lines), has_min, *record,
                                          results);
        ++record;
    });
}

template <int Bits, int Groups>
struct Kernels {
    static constexpr int64_t kPreparedBytes = sizeof(PreparedBlock<Bits, Groups>);
    static constexpr BlockKernel kFirst[kMaxRows] = {
        multiply_one<Bits, Groups>, multiply_first<Bits, Groups, 2>, multiply_first<Bits, Groups, 3>,
        multiply_first<Bits, Groups, 4>};
    static constexpr BlockKernel kOther[kMaxRows] = {
        multiply_other<Bits, Groups, 1>, multiply_other<Bits, Groups, 2>, multiply_other<Bits, Groups, 3>,
        multiply_other<Bits, Groups, 4>};
};

bool has_wide_rows(const Weight& w) { return w.code_bits == 8; }

}  // namespace
}  // namespace penstock::linear

#include "linear/sweep.inl"
