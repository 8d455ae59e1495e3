#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define PENSTOCK_ISA baseline
#include "ceilings/arithmetic.inl"
#include "ceilings/read.inl"

namespace penstock::ceilings {
namespace {

#if defined(__x86_64__)
struct Int8 {  // of codes that have been widened to 16 bits
    using Register = __m128i;
    static constexpr int kChains = 8, kOperations = 16;

    static PENSTOCK_INLINE Register step(Register sum, Register a, Register b) {
        PENSTOCK_CHANGED(a);
        return _mm_add_epi32(sum, _mm_madd_epi16(a, b));
    }
};
#elif defined(__aarch64__)
struct Int8 {
    using Register = int32x4_t;
    static constexpr int kChains = 8, kOperations = 16;

    static PENSTOCK_INLINE Register step(Register sum, Register a, Register b) {
        PENSTOCK_CHANGED(a);
        return vpadalq_s16(sum, vmull_s8(vget_low_s8((int8x16_t)a), vget_low_s8((int8x16_t)b)));
    }
};
#else
struct Int8 {
    typedef int32_t Register __attribute__((vector_size(16)));
    static constexpr int kChains = 8, kOperations = 8;

    static PENSTOCK_INLINE Register step(Register sum, Register a, Register b) {
        PENSTOCK_CHANGED(a);
        return sum + a * b;
    }
};
#endif

}  // namespace

Arithmetic baseline::arithmetic(Kind kind) {
    if (kind == Kind::bf16) return {};
    return kind == Kind::i8 ? arithmetic_of<Int8>() : arithmetic_of<Float32>();
}

}  // namespace penstock::ceilings
