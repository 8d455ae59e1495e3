// RMS norm over the last dimension (Zhang and Sennrich 2019), alone or behind the addition of a residual.
#pragma once

#include <cstdint>

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

PENSTOCK_DECLARE_PER_ISA(void rms_norm(const RmsNormArgs&, Share))

inline const PerIsa<void (*)(const RmsNormArgs&, Share)> kRmsNorm = PENSTOCK_PER_ISA(rms_norm);

}  // namespace penstock::norm
