// Multiplication of float32 activations with a dense weight of bfloat16, float16 or float32, accumulated in float32.
//
// Every output has one accumulator, to which the columns are added in ascending order. How rows are blocked, which rows
// lie beside one another and which thread computes a tile therefore never changes a bit of a result.
#pragma once

#include <cstdint>

#include "runtime/isa.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock::linear_dense {

// Types of weights. Numbers and order are those of penstock.kernels.native.linear_dense.
enum class Format : int { bf16 = 0, f16 = 1, f32 = 2 };

// How a kernel of one instruction set and format lays out its operands.
//
// A packed weight is a sequence of tiles of `tile` outputs, the last padded with zeros. A tile is a sequence of steps
// of `step_cols` columns, the last padded with zeros: for each output of the tile that output's columns of the step.
// Arranged activations are blocks of at most `block_rows` rows; a block is a sequence of steps of `step_bytes` per row.
struct Layout {
    int tile, step_cols, block_rows, step_bytes;
};

// Values [outs, cols] with rows row_stride elements apart -> a packed weight.
struct PackArgs {
    const void* values;
    int64_t outs, cols, row_stride;
    void* out;
};

// Activations [rows, cols] in float32 -> arranged, rounded to bfloat16 where the format is.
struct ArrangeArgs {
    const float* x;
    int64_t rows, cols, row_stride;
    void* out;
};

struct LinearArgs {
    ArrangeArgs x;
    bool arrange;  // every thread arranges x for itself, in its own copy of x.out
    const void* weight;
    const float* bias;  // or null
    int64_t outs;
    float* out;  // [rows, outs], rows out_stride elements apart
    int64_t out_stride;
};

// The largest output of every row and its index: the lowest index of equal ones, a NaN before any number.
struct ArgmaxArgs {
    LinearArgs linear;   // without bias and out
    int64_t chunk_tiles;  // a chunk of outputs has one candidate per row
    float* values;       // [chunks, rows]
    int64_t* ids;        // [chunks, rows]
};

struct MergeArgs {
    const float* values;
    const int64_t* ids;
    int64_t chunks, rows;
    float* best_values;  // [rows]
    int64_t* best_ids;   // [rows]
};

// Rows of a packed weight in float32; NaN for an id that it does not have.
struct EmbedArgs {
    const void* weight;
    int64_t outs, cols;
    const int64_t* ids;
    int64_t rows;
    float* out;  // [rows, cols]
};

// What one instruction set has for one format.
struct Kernels {
    Layout layout;
    void (*pack)(const PackArgs&, Share);
    void (*arrange)(const ArrangeArgs&, Share);
    void (*linear)(const LinearArgs&, Share);
    void (*argmax)(const ArgmaxArgs&, Share);
    void (*embed)(const EmbedArgs&, Share);
};

// Null for a format that the instruction set has no kernels for.
PENSTOCK_DECLARE_PER_ISA_BF16(const Kernels* kernels(Format))

inline const PerIsa<const Kernels* (*)(Format)> kKernels = PENSTOCK_PER_ISA_BF16(kernels);

void merge(const MergeArgs& args, Share share);

// Never a function of its own: the linker would keep the copy of any instruction set.
inline __attribute__((always_inline)) int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t packed_bytes(const Kernels& k, Format format, int64_t outs, int64_t cols) {
    const int64_t element = format == Format::f32 ? 4 : 2;
    return divide_up(outs, k.layout.tile) * k.layout.tile * divide_up(cols, k.layout.step_cols) * k.layout.step_cols *
           element;
}

inline int64_t arranged_bytes(const Kernels& k, int64_t rows, int64_t cols) {
    return rows * divide_up(cols, k.layout.step_cols) * k.layout.step_bytes;
}

}  // namespace penstock::linear_dense
