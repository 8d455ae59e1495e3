// Compiled once per instruction set: the including file defines PENSTOCK_ISA.
#include "norm/norm.hpp"
#include "quantize/block.hpp"
#include "simd/vec.hpp"

namespace penstock::norm {
namespace {

// The sum of squares of the columns that `load` answers, in one fixed order: four accumulators take turns, so that
// no addition waits for the one before it.
template <class Load>
PENSTOCK_INLINE float sum_of_squares(int64_t size, Load load) {
    f32x16 squares[4] = {};
    int64_t i = 0;
    for (; i + 64 <= size; i += 64) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            const f32x16 value = load(Columns<true>{i + k * 16, 16});
            squares[k] += value * value;
        }
    }
    for (; i + 16 <= size; i += 16) {
        const f32x16 value = load(Columns<true>{i, 16});
        squares[0] += value * value;
    }
    if (i < size) {
        const f32x16 value = load(Columns<false>{i, size - i});
        squares[1] += value * value;
    }
    return sum_lanes((squares[0] + squares[2]) + (squares[1] + squares[3]));
}

PENSTOCK_INLINE float inverse_rms(float squares, int64_t size, float eps) {
    return 1.0f / __builtin_sqrtf(squares / static_cast<float>(size) + eps);
}

PENSTOCK_INLINE void scale_row(const float* x, const float* weight, float factor, float* out, int64_t size) {
    for_columns(size, [=](auto columns) __attribute__((always_inline)) {
        columns.store(out, columns.load(x) * factor * columns.load(weight));
    });
}

PENSTOCK_INLINE void scale_row_quantized(const float* x, const float* weight, float factor,
                                         const quantize::QuantizedRows& out, int64_t size, int64_t first_block) {
    quantize::quantize_row(size, out, first_block, [=](int64_t column) __attribute__((always_inline)) {
        return load16(x + column) * factor * load16(weight + column);
    });
}

template <bool kAdd, bool kQuantize>
PENSTOCK_INLINE void norm_row(const NormRowsArgs& args, int64_t row) {
    const float* x = args.x + row * args.stride;
    float squares;
    if constexpr (kAdd) {
        const float* residual = args.residual + row * args.residual_stride;
        float* sum = args.sum + row * args.size;
        squares = sum_of_squares(args.size, [=](auto columns) __attribute__((always_inline)) {
            const f32x16 value = columns.load(x) + columns.load(residual);
            columns.store(sum, value);
            return value;
        });
        x = sum;
    } else {
        squares = sum_of_squares(args.size, [=](auto columns) __attribute__((always_inline)) { return columns.load(x); });
    }
    const float factor = inverse_rms(squares, args.size, args.eps);
    if constexpr (kQuantize)
        scale_row_quantized(x, args.weight, factor, args.quantized, args.size, row * (args.size / quantize::kBlock));
    else
        scale_row(x, args.weight, factor, args.out + row * args.size, args.size);
}

template <bool kAdd, bool kQuantize>
PENSTOCK_INLINE void norm_rows(const NormRowsArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(share.chunk_of(args.rows), args.rows, begin, end))
        for (int64_t row = begin; row < end; ++row) norm_row<kAdd, kQuantize>(args, row);
}

}  // namespace

namespace PENSTOCK_ISA {

void rms_norm(const RmsNormArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(share.chunk_of(args.outer), args.outer, begin, end)) {
        for (int64_t i = begin; i < end; ++i) {
            for (int64_t j = 0; j < args.inner; ++j) {
                const float* x = args.x + i * args.outer_stride + j * args.inner_stride;
                const float squares = sum_of_squares(
                    args.size, [=](auto columns) __attribute__((always_inline)) { return columns.load(x); });
                scale_row(x, args.weight + j * args.weight_stride, inverse_rms(squares, args.size, args.eps),
                          args.out + (i * args.inner + j) * args.size, args.size);
            }
        }
    }
}

void add_rms_norm(const NormRowsArgs& args, Share share) { norm_rows<true, false>(args, share); }
void rms_norm_quantized(const NormRowsArgs& args, Share share) { norm_rows<false, true>(args, share); }
void add_rms_norm_quantized(const NormRowsArgs& args, Share share) { norm_rows<true, true>(args, share); }

}  // namespace PENSTOCK_ISA
}  // namespace penstock::norm
