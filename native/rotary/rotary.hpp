// Rotary position embedding (Su et al. 2021) in the half-split layout: the tables of a step, and their application.
#pragma once

#include <cstdint>

#include "runtime/isa.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock::rotary {

// angle = float(position) * frequency, rounded to float; cosines and sines of it times the temperature. Row i of a table
// holds head_dim = 2 * half floats: cosines the same in both halves, sines negative in the first.
struct TablesArgs {
    const int64_t* positions;  // [tokens], read when the kernel runs
    int64_t tokens;
    const float* frequencies;  // [half]
    int64_t half;
    float temperature;
    float *cos, *sin;  // [tokens, 2 * half], contiguous
};

// Head (i, j) of x is x + i * token_stride + j * head_stride. Tables as above.
struct RotaryArgs {
    const float* x;
    int64_t tokens, heads, half, token_stride, head_stride;
    const float *cos, *sin;
    float* out;  // [tokens, heads, 2 * half], contiguous
};

PENSTOCK_DECLARE_PER_ISA(void tables(const TablesArgs&, Share))
PENSTOCK_DECLARE_PER_ISA(void rotary(const RotaryArgs&, Share))

inline const PerIsa<void (*)(const TablesArgs&, Share)> kTables = PENSTOCK_PER_ISA(tables);
inline const PerIsa<void (*)(const RotaryArgs&, Share)> kRotary = PENSTOCK_PER_ISA(rotary);

}  // namespace penstock::rotary
