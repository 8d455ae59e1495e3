// Gated activations: act(gate) * up, with the result as floats or as the quantized rows that an integer linear reads.
#pragma once

#include <cstdint>

#include "quantize/quantized_rows.hpp"
#include "runtime/isa.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock::activation {

// Row i of the gate is gate_up + i * stride, that of the other half lies `size` floats behind it.
struct GatedArgs {
    const float* gate_up;
    int64_t rows, size, stride;
    float* out;                        // [rows, size], contiguous; or
    quantize::QuantizedRows quantized;  // for the kernels that quantize; size is then a multiple of 32
};

PENSTOCK_DECLARE_PER_ISA(void silu_and_mul(const GatedArgs&, Share))
PENSTOCK_DECLARE_PER_ISA(void gelu_and_mul(const GatedArgs&, Share))
PENSTOCK_DECLARE_PER_ISA(void silu_and_mul_quantized(const GatedArgs&, Share))
PENSTOCK_DECLARE_PER_ISA(void gelu_and_mul_quantized(const GatedArgs&, Share))

inline const PerIsa<void (*)(const GatedArgs&, Share)> kSiluAndMul = PENSTOCK_PER_ISA(silu_and_mul);
inline const PerIsa<void (*)(const GatedArgs&, Share)> kGeluAndMul = PENSTOCK_PER_ISA(gelu_and_mul);
inline const PerIsa<void (*)(const GatedArgs&, Share)> kSiluAndMulQuantized = PENSTOCK_PER_ISA(silu_and_mul_quantized);
inline const PerIsa<void (*)(const GatedArgs&, Share)> kGeluAndMulQuantized = PENSTOCK_PER_ISA(gelu_and_mul_quantized);

}  // namespace penstock::activation
