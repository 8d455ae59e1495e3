// Compiled once per instruction set: the including file defines PENSTOCK_ISA.
#include "activation/activation.hpp"
#include "quantize/block.hpp"
#include "simd/vec.hpp"

namespace penstock::activation {
namespace {

struct Silu {
    PENSTOCK_INLINE f32x16 operator()(f32x16 x) const { return x / (1.0f + exp16(-x)); }
};

// The tanh form: 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3) is x / (1 + exp(-2 u)), which keeps its
// relative accuracy where 1 + tanh(u) would cancel.
struct Gelu {
    PENSTOCK_INLINE f32x16 operator()(f32x16 x) const {
        constexpr float kLinear = -1.5957691216057308f, kCubic = kLinear * 0.044715f;  // -2 sqrt(2 / pi)
        return x / (1.0f + exp16(x * (kLinear + kCubic * (x * x))));
    }
};

template <class Activation>
PENSTOCK_INLINE void gate_rows(const GatedArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(share.chunk_of(args.rows), args.rows, begin, end)) {
        for (int64_t row = begin; row < end; ++row) {
            const float *gate = args.gate_up + row * args.stride, *up = gate + args.size;
            float* out = args.out + row * args.size;
            for_columns(args.size, [=](auto columns) __attribute__((always_inline)) {
                columns.store(out, Activation{}(columns.load(gate)) * columns.load(up));
            });
        }
    }
}

template <class Activation>
PENSTOCK_INLINE void gate_rows_quantized(const GatedArgs& args, Share share) {
    const int64_t blocks = args.size / quantize::kBlock;
    int64_t begin, end;
    while (share.take(share.chunk_of(args.rows), args.rows, begin, end)) {
        for (int64_t row = begin; row < end; ++row) {
            const float *gate = args.gate_up + row * args.stride, *up = gate + args.size;
            quantize::quantize_row(args.size, args.quantized, row * blocks,
                                   [=](int64_t column) __attribute__((always_inline)) {
                                       return Activation{}(load16(gate + column)) * load16(up + column);
                                   });
        }
    }
}

}  // namespace

namespace PENSTOCK_ISA {

void silu_and_mul(const GatedArgs& args, Share share) { gate_rows<Silu>(args, share); }
void gelu_and_mul(const GatedArgs& args, Share share) { gate_rows<Gelu>(args, share); }
void silu_and_mul_quantized(const GatedArgs& args, Share share) { gate_rows_quantized<Silu>(args, share); }
void gelu_and_mul_quantized(const GatedArgs& args, Share share) { gate_rows_quantized<Gelu>(args, share); }

}  // namespace PENSTOCK_ISA
}  // namespace penstock::activation
