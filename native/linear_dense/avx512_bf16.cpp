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
    template <int kRows_>
    using Sums = LaneSums<Bf16, kRows_>;
    static constexpr int kCols = 2, kXs = 1, kWordBytes = 4, kRows = 12;

    static PENSTOCK_INLINE Weights load(const std::byte* from) { return _mm512_loadu_si512(from); }

    static PENSTOCK_INLINE Floats add(Floats sum, Weights weights, const X* x) {
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights,
                                        (__m512bh)_mm512_set1_epi32(static_cast<int>(*x)));
    }

    static PENSTOCK_INLINE void arrange(const float* x, X* to) {
        for (int i = 0; i < kPiece / 2; i += 8)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + 2 * i)));
    }

    static float value(const std::byte* from) { return widen_bf16(from); }
};

}  // namespace

namespace avx512_bf16 {

const Kernels* kernels(Format format) { return format == Format::bf16 ? &kernels_of<Bf16> : nullptr; }

}  // namespace avx512_bf16
}  // namespace penstock::linear_dense
