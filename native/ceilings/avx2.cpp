#include <immintrin.h>

#define PENSTOCK_ISA avx2
#include "ceilings/arithmetic.inl"
#include "ceilings/read.inl"

namespace penstock::ceilings {
namespace {

struct Int8 {  // three instructions: a set without a dot product has no better way
    using Register = __m256i;
    static constexpr int kChains = 8, kOperations = 64;

    static PENSTOCK_INLINE Register step(Register sum, Register a, Register b) {
        PENSTOCK_CHANGED(a);
        const __m256i pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
        return _mm256_add_epi32(sum, pairs);
    }
};

}  // namespace

Arithmetic avx2::arithmetic(Kind kind) {
    if (kind == Kind::bf16) return {};
    return kind == Kind::i8 ? arithmetic_of<Int8>() : arithmetic_of<Float32>();
}

}  // namespace penstock::ceilings
