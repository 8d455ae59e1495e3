#include <immintrin.h>

#define PENSTOCK_ISA avx2
#include "ceilings/arithmetic.inl"
#include "ceilings/read.inl"

namespace penstock::ceilings {
namespace {

struct Int8 {  // of codes of four bits, whose sums stay in int16 for a while; more bits take more instructions
    using Register = __m256i;
    static constexpr int kChains = 8, kOperations = 64;

    static PENSTOCK_INLINE Register step(Register sum, Register a, Register b) {
        __m256i products;  // the compiler would compute them once for all chains
        asm volatile("vpmaddubsw %2, %1, %0" : "=x"(products) : "x"(a), "x"(b));
        return _mm256_add_epi16(sum, products);
    }
};

}  // namespace

Arithmetic avx2::arithmetic(Kind kind) {
    if (kind == Kind::bf16) return {};
    return kind == Kind::i8 ? arithmetic_of<Int8>() : arithmetic_of<Float32>();
}

}  // namespace penstock::ceilings
