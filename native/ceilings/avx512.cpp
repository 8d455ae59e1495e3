#include <immintrin.h>

#define PENSTOCK_ISA avx512
#include "ceilings/arithmetic.inl"
#include "ceilings/read.inl"

namespace penstock::ceilings {
namespace {

struct Int8 {
    using Register = __m512i;
    static constexpr int kChains = 16, kOperations = 128;

    static PENSTOCK_INLINE Register step(Register sum, Register a, Register b) {
        return _mm512_dpbusd_epi32(sum, a, b);
    }
};

}  // namespace

Arithmetic avx512::arithmetic(Kind kind) {
    if (kind == Kind::bf16) return {};
    return kind == Kind::i8 ? arithmetic_of<Int8>() : arithmetic_of<Float32>();
}

}  // namespace penstock::ceilings
