// Quantization of activations (penstock.kernels.reference.quantize_rows says to what).
#pragma once

#include <cstdint>

#include "quantize/quantized_rows.hpp"
#include "runtime/isa.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock::quantize {

struct QuantizeArgs {
    const float* x;  // row i is x + i * stride, contiguous
    int64_t rows, size, stride;
    QuantizedRows out;
};

PENSTOCK_DECLARE_PER_ISA(void quantize_rows(const QuantizeArgs&, Share))

inline const PerIsa<void (*)(const QuantizeArgs&, Share)> kQuantizeRows = PENSTOCK_PER_ISA(quantize_rows);

}  // namespace penstock::quantize
