// Multiplication of quantized rows with a quantized weight: linear layers, the LM head with its greedy choice,
// embedding.
//
// A weight is affine: value = scale * (code - zero_point) + minimum, codes unsigned of 4, 5, 6 or 8 bits, scale and
// minimum for each output and group of 16 or of a multiple of 32 columns. Rows are affine too: value = scale * (code -
// zero), int8 codes, scale and zero for each block of 32 columns, and the sum of the block's code - zero.
//
// Numerics. One float32 accumulator per output starts at 0. Blocks are taken in ascending order; where groups have 16
// columns, a half of a block is what a block is otherwise. For each:
//     dot = sum of weight_code * row_code - zero * (sum of weight_code) - zero_point * sum, exact in int32
//     acc = fma(float(dot), weight_scale * row_scale, acc)
//     acc = fma(minimum, row_scale * float(sum), acc)      when the weight has minima
// and at the end the bias is added. Every kernel does just this for every output, whatever rows stand beside it, so the
// bits of a result depend on its row and its weight alone. (Baseline x86-64 has no fma and rounds twice.)
//
// Layout. 16 outputs are a tile; the last is filled up with scales, minima and codes of 0. Tiles follow each other. A
// tile is a sequence of records in ascending columns, one for each group, or for each block when a group is half a
// block:
//     scales   [groups of the record][16] float16 or float32
//     minima   the same, when the weight has them
//     blocks   group_size / 32 of them, at least one
// A block is 16 outputs x 32 columns in lines of 64 codes. Within a block the codes are ordered by (span of columns,
// output, column in the span); a span is span_of(isa) columns. With a span of 4, line q has columns 4q to 4q + 3 of
// all 16 outputs, which is one operand of vpdpbusd; with a span of 8, lines 2q and 2q + 1 have columns 8q to 8q + 7 of
// outputs 0 to 7 and 8 to 15. Stored are
//     8 bits   8 lines of 64 bytes
//     4 bits   4 x 64 bytes: byte j of the k-th has code j of line 2k below and code j of line 2k + 1 above
//     5 bits   the low four as 4 bits, then 64 bytes: bit i of byte j is the high bit of code j of line i
//     6 bits   the low four as 4 bits, then 2 x 64 bytes: bits 2i, 2i + 1 of byte j of the k-th are the high bits of
//              code j of line 4k + i
// so that a tile is read from its first byte to its last.
#pragma once

#include <cstdint>

#include "runtime/isa.hpp"
#include "runtime/thread_pool.hpp"
#include "simd/vec.hpp"

namespace penstock::linear {

constexpr int64_t kTile = 16;
constexpr int64_t kBlock = 32;

struct Weight {
    const uint8_t* data;
    int64_t out_features, in_features;
    int32_t code_bits;   // 4, 5, 6 or 8
    int32_t group_size;  // 16 or a multiple of 32; divides in_features
    int32_t scale_bits;  // 16 or 32
    int32_t has_min;
    int32_t zero_point;
};

// Contiguous.
struct QuantizedRows {
    const int8_t* codes;  // [rows, in_features]
    const float* scales;  // [rows, in_features / 32], as are the others
    const int8_t* zeros;
    const int32_t* sums;
    int64_t num_rows;
};

// Block kernels read rows from one place: a record for each block of 32 columns, with what does not depend on the
// output worked out. `sums` below are those of code - zero over a group, which is a half of the block where Groups is
// 2. `minus` is a pair of int16, -zero below and -sum above: times the pair of the sum of the weight's codes (which is
// below 2^15) and its zero point it gives what the exact dot lacks. Wide rows have int16 for int8, which are code -
// zero, and 0 for -zero.
template <int Rows, int Groups, class Code = int8_t>
struct RowRecord {
    Code codes[Rows][kBlock];
    float scales[Rows];
    int32_t minus[Groups][Rows];
    float scaled_sums[Groups][Rows];  // scale * sum
};

// A kernel multiplies the rows that it was made for with a column of adjacent tiles: results [rows][tiles][16]. Many
// blocks of rows meet the same column. The kernel for the first of them reads the tiles, and writes all that depends on
// the weight alone to `prepared`, as its instruction set likes it (not if that is null); the kernel for the others
// reads it there.
using BlockKernel = void (*)(const Weight&, const uint8_t* const* tiles, uint8_t* prepared, const uint8_t* rows,
                             float* results);

struct LinearArgs {
    QuantizedRows x;
    Weight weight;
    const float* bias;   // [out_features], or null
    float* out;          // [rows, out_features]
    int64_t out_stride;  // floats from a row of out to the next
};

// The largest output of each row in chunks of kArgmaxChunk outputs. The largest of the chunks is for
// linear_dense::merge.
constexpr int64_t kArgmaxChunk = 192;  // a multiple of what any block kernel computes

struct ArgmaxArgs {
    QuantizedRows x;
    Weight weight;
    float* values;  // [chunks, rows]: NaN when an output of the chunk is
    int64_t* ids;   // [chunks, rows]: the lowest among equals
};

struct EmbeddingArgs {
    Weight weight;
    const int64_t* ids;
    int64_t num_rows;
    float* out;   // [rows, in_features]; NaN for an id that the weight does not have
    float scale;  // of the result
    int32_t span;
};

struct PackArgs {
    const uint8_t* codes;  // [out_features, in_features]
    const void* scales;    // [out_features, groups], float16 or float32
    const void* mins;      // the same, or null
    uint8_t* data;
    Weight weight;  // its data is not looked at
    int32_t span;
};

namespace {

// Two int16 in one int32, the first one below.
PENSTOCK_INLINE int32_t pair16(int32_t first, int32_t second) {
    return static_cast<int32_t>(static_cast<uint32_t>(first & 0xffff) | static_cast<uint32_t>(second) << 16);
}

PENSTOCK_INLINE int64_t groups_per_record(const Weight& w) { return w.group_size < kBlock ? kBlock / w.group_size : 1; }
PENSTOCK_INLINE int64_t blocks_per_record(const Weight& w) { return w.group_size < kBlock ? 1 : w.group_size / kBlock; }
PENSTOCK_INLINE int64_t block_bytes(const Weight& w) { return kTile * kBlock * w.code_bits / 8; }
// Of the scales of one record; the minima are as many.
PENSTOCK_INLINE int64_t scales_bytes(const Weight& w) { return groups_per_record(w) * kTile * (w.scale_bits / 8); }
PENSTOCK_INLINE int64_t header_bytes(const Weight& w) { return scales_bytes(w) * (w.has_min ? 2 : 1); }
PENSTOCK_INLINE int64_t record_bytes(const Weight& w) {
    return header_bytes(w) + blocks_per_record(w) * block_bytes(w);
}
PENSTOCK_INLINE int64_t num_records(const Weight& w) { return w.in_features / (blocks_per_record(w) * kBlock); }
PENSTOCK_INLINE int64_t tile_bytes(const Weight& w) { return num_records(w) * record_bytes(w); }
// Of one row's part of a record of rows.
PENSTOCK_INLINE int64_t row_bytes(const Weight& w, bool wide) {
    return kBlock * (wide ? 2 : 1) + 4 + 8 * groups_per_record(w);
}
PENSTOCK_INLINE int64_t num_blocks(const Weight& w) { return w.in_features / kBlock; }
PENSTOCK_INLINE int64_t num_tiles(const Weight& w) { return (w.out_features + kTile - 1) / kTile; }

}  // namespace

// Columns of a span in the layout that the kernels of an instruction set read.
constexpr int32_t span_of(int isa) { return isa == static_cast<int>(Isa::neon) ? 8 : 4; }

// Portable; any instruction set's layout.
void pack(const PackArgs&, Share);
void embedding(const EmbeddingArgs&, Share);

PENSTOCK_DECLARE_PER_ISA(void linear(const LinearArgs&, Share))
PENSTOCK_DECLARE_PER_ISA(void argmax(const ArgmaxArgs&, Share))

inline const PerIsa<void (*)(const LinearArgs&, Share)> kLinear = PENSTOCK_PER_ISA(linear);
inline const PerIsa<void (*)(const ArgmaxArgs&, Share)> kArgmax = PENSTOCK_PER_ISA(argmax);

}  // namespace penstock::linear
