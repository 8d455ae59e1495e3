// RMS norm over the last dimension (Zhang and Sennrich 2019), alone or behind the addition of a residual, and with the
// result as floats or as the quantized rows that an integer linear reads.
#pragma once

#include <cstdint>

#include "quantize/quantized_rows.hpp"
#include "runtime/isa.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock::norm {

// Row (i, j) of x is x + i * outer_stride + j * inner_stride, j < inner: [tokens, heads, size] has heads inside. Its
// weight is weight + j * weight_stride. Strides are in floats; rows are contiguous.
struct RmsNormArgs {
    const float* x;
    int64_t outer, inner, outer_stride, inner_stride;
    int64_t size;
    const float* weight;
    int64_t weight_stride;
    float eps;
    float* out;  // [outer, inner, size], contiguous
};

// Row i is x + i * stride. With a residual, x + residual is written to `sum` and normalised.
struct NormRowsArgs {
    const float* x;
    int64_t rows, size, stride;
    const float* residual;
    int64_t residual_stride;
    float* sum;  // [rows, size], contiguous
    const float* weight;
    float eps;
    float* out;                        // [rows, size], contiguous; or
    quantize::QuantizedRows quantized;  // for the kernels that quantize; size is then a multiple of 32
};

PENSTOCK_DECLARE_PER_ISA(void rms_norm(const RmsNormArgs&, Share))
PENSTOCK_DECLARE_PER_ISA(void add_rms_norm(const NormRowsArgs&, Share))
PENSTOCK_DECLARE_PER_ISA(void rms_norm_quantized(const NormRowsArgs&, Share))
PENSTOCK_DECLARE_PER_ISA(void add_rms_norm_quantized(const NormRowsArgs&, Share))

inline const PerIsa<void (*)(const RmsNormArgs&, Share)> kRmsNorm = PENSTOCK_PER_ISA(rms_norm);
inline const PerIsa<void (*)(const NormRowsArgs&, Share)> kAddRmsNorm = PENSTOCK_PER_ISA(add_rms_norm);
inline const PerIsa<void (*)(const NormRowsArgs&, Share)> kRmsNormQuantized = PENSTOCK_PER_ISA(rms_norm_quantized);
inline const PerIsa<void (*)(const NormRowsArgs&, Share)> kAddRmsNormQuantized =
    PENSTOCK_PER_ISA(add_rms_norm_quantized);

}  // namespace penstock::norm
