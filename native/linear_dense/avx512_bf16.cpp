// bfloat16 alone: the other formats' kernels are those of avx512.
#include <immintrin.h>

#define PENSTOCK_ISA avx512_bf16
#define PENSTOCK_LANES 16
#define PENSTOCK_VECTORS 2
#include "linear_dense/kernels.inl"

namespace penstock::linear_dense {
namespace {

struct Bf16 {
    using X = uint32_t;  // two columns
    using Weights = __m512i;
    static constexpr int kCols = 2, kXs = 1, kWordBytes = 4, kRows = 12;

    static PENSTOCK_INLINE Weights load(const std::byte* from) { return _mm512_loadu_si512(from); }

    static PENSTOCK_INLINE Floats add(Floats sum, Weights weights, const X* x) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights,
                                        (__m512bh)_mm512_set1_epi32(static_cast<int>(*x)));
    }

    static PENSTOCK_INLINE void arrange(const float* x, X* to) {
        uint16_t rounded[kPiece];
        for (int i = 0; i < kPiece; i += 16) narrow_bf16(rounded + i, load16(x + i));
        std::memcpy(to, rounded, sizeof rounded);
    }

    static float value(const std::byte* from) { return widen_bf16(from); }
};

}  // namespace

namespace avx512_bf16 {

const Kernels* kernels(Format format) { return format == Format::bf16 ? &kernels_of<Bf16> : nullptr; }

}  // namespace avx512_bf16
}  // namespace penstock::linear_dense
