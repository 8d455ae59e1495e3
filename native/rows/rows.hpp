// Ops on whole rows that compute little: gathering, adding, scaling.
#pragma once

#include <cstdint>

#include "runtime/isa.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock::rows {

struct GatherArgs {
    const float* x;  // row i is x + i * stride, contiguous
    int64_t stride, size;
    const int64_t* rows;  // [count], read when the kernel runs
    int64_t count;
    float* out;  // [count, size], contiguous
};

struct AddArgs {
    const float *a, *b;  // rows are contiguous and a stride apart
    int64_t rows, size, a_stride, b_stride;
    float* out;  // [rows, size], contiguous
};

struct ScaleArgs {
    const float* x;
    int64_t rows, size, stride;
    float factor;
    float* out;  // [rows, size], contiguous
};

PENSTOCK_DECLARE_PER_ISA(void gather(const GatherArgs&, Share))
PENSTOCK_DECLARE_PER_ISA(void add(const AddArgs&, Share))
PENSTOCK_DECLARE_PER_ISA(void scale(const ScaleArgs&, Share))

inline const PerIsa<void (*)(const GatherArgs&, Share)> kGather = PENSTOCK_PER_ISA(gather);
inline const PerIsa<void (*)(const AddArgs&, Share)> kAdd = PENSTOCK_PER_ISA(add);
inline const PerIsa<void (*)(const ScaleArgs&, Share)> kScale = PENSTOCK_PER_ISA(scale);

}  // namespace penstock::rows
