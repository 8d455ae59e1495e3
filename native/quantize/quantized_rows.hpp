// Where quantized rows are written: the arrays of penstock.kernels.activations.QuantizedRows, each contiguous.
#pragma once

#include <cstdint>

namespace penstock::quantize {

constexpr int64_t kBlock = 32;  // columns that share a scale

// value = scale * (code - zero); the sum is that of code - zero over the block.
struct QuantizedRows {
    int8_t* codes;  // [rows, size], size a multiple of kBlock
    float* scales;  // this and the others: [rows, size / kBlock]
    int8_t* zeros;
    int32_t* sums;
};

}  // namespace penstock::quantize
