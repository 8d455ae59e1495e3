#include <arm_neon.h>

#define PENSTOCK_ISA neon
#include "ceilings/arithmetic.inl"
#include "ceilings/read.inl"

namespace penstock::ceilings {
namespace {

struct Int8 {  // 2x8 times 8x2
    using Register = int32x4_t;
    static constexpr int kChains = 16, kOperations = 64;

    static PENSTOCK_INLINE Register step(Register sum, Register a, Register b) {
        return vmmlaq_s32(sum, (int8x16_t)a, (int8x16_t)b);
    }
};

}  // namespace

Arithmetic neon::arithmetic(Kind kind) {
    if (kind == Kind::bf16) return {};
    return kind == Kind::i8 ? arithmetic_of<Int8>() : arithmetic_of<Float32>();
}

}  // namespace penstock::ceilings
