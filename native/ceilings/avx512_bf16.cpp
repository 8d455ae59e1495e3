// The bfloat16 dot product alone: the rest is that of avx512.
#include <immintrin.h>

#include "ceilings/arithmetic.inl"

namespace penstock::ceilings {
namespace {

struct Bf16 {
    using Register = __m512;
    static constexpr int kChains = 16, kOperations = 64;

    static PENSTOCK_INLINE Register step(Register sum, Register a, Register b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
};

}  // namespace

Arithmetic avx512_bf16::arithmetic(Kind kind) { return kind == Kind::bf16 ? arithmetic_of<Bf16>() : Arithmetic{}; }

}  // namespace penstock::ceilings
