// The bfloat16 product alone: the rest is that of neon.
#include <arm_neon.h>

#include "ceilings/arithmetic.inl"

namespace penstock::ceilings {
namespace {

struct Bf16 {  // 2x4 times 4x2
    using Register = float32x4_t;
    static constexpr int kChains = 16, kOperations = 32;

    static PENSTOCK_INLINE Register step(Register sum, Register a, Register b) {
        return vbfmmlaq_f32(sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
    }
};

}  // namespace

Arithmetic neon_bf16::arithmetic(Kind kind) { return kind == Kind::bf16 ? arithmetic_of<Bf16>() : Arithmetic{}; }

}  // namespace penstock::ceilings
