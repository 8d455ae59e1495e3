// Formats whose weights are widened to float32 before they are multiplied, for every instruction set. The including
// file defines what kernels.inl wants, and PENSTOCK_ROWS: rows of a block, as many as the registers hold.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "linear_dense/kernels.inl"

namespace penstock::linear_dense {
namespace {

struct Bf16 {
    using X = float;
    static constexpr int kCols = 2, kXs = 2, kWordBytes = 4, kRows = PENSTOCK_ROWS;

    template <int kRows_>
    using Sums = LaneSums<Bf16, kRows_>;

    struct Weights {
        Floats even, odd;
    };

    static PENSTOCK_INLINE Weights load(const std::byte* from) {
        const Words both = linear_dense::load<Words>(from);
        return {(Floats)(both << 16), (Floats)(both & 0xffff0000u)};
    }

    static PENSTOCK_INLINE Floats add(Floats sum, Weights weights, const X* x) {
        sum += weights.even * x[0];
        sum += weights.odd * x[1];
        return sum;
    }

    static PENSTOCK_INLINE void arrange(const float* x, X* to) {
        uint16_t rounded[kPiece];
        for (int i = 0; i < kPiece; i += 16) {
            narrow_bf16(rounded + i, load16(x + i));
            store16(to + i, penstock::widen_bf16(rounded + i));
        }
    }

    static float value(const std::byte* from) { return widen_bf16(from); }
};

// Activations as they are.
struct Unrounded {
    using X = float;
    static constexpr int kCols = 1, kXs = 1, kRows = PENSTOCK_ROWS;
    using Weights = Floats;

    static PENSTOCK_INLINE Floats add(Floats sum, Weights weights, const X* x) { return sum + weights * x[0]; }
    static PENSTOCK_INLINE void arrange(const float* x, X* to) { std::memcpy(to, x, kPiece * sizeof(float)); }
};

struct F32 : Unrounded {
    template <int kRows_>
    using Sums = LaneSums<F32, kRows_>;
    static constexpr int kWordBytes = 4;

    static PENSTOCK_INLINE Weights load(const std::byte* from) { return linear_dense::load<Floats>(from); }
    static float value(const std::byte* from) { return linear_dense::load<float>(from); }
};

struct F16 : Unrounded {
    template <int kRows_>
    using Sums = LaneSums<F16, kRows_>;
    static constexpr int kWordBytes = 2;

    static PENSTOCK_INLINE Weights load(const std::byte* from) {
#if defined(__AVX512F__)
        return (Floats)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
        return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__aarch64__)
        typedef __fp16 Halves __attribute__((vector_size(2 * kLanes)));
        return __builtin_convertvector(linear_dense::load<Halves>(from), Floats);
#else
        typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
        return widen(__builtin_convertvector(linear_dense::load<Halves>(from), Words));
#endif
    }

    static float value(const std::byte* from) {
        return widen(Words{} + linear_dense::load<uint16_t>(from))[0];
    }

    // Exact for every number: the exponent's bias differs by 112, which a multiplication corrects also for subnormals.
    static PENSTOCK_INLINE Floats widen(Words half) {
        const Floats scaled = (Floats)((half & 0x7fff) << 13) * 0x1p112f;
        const Words endless = (Words)((half & 0x7c00) == 0x7c00);  // infinities and NaNs keep their largest exponent
        return (Floats)((Words)scaled | (endless & 0x7f800000u) | (half & 0x8000) << 16);
    }
};

}  // namespace

namespace PENSTOCK_ISA {

const Kernels* kernels(Format format) {
    switch (format) {
        case Format::bf16: return &kernels_of<Bf16>;
        case Format::f16: return &kernels_of<F16>;
        case Format::f32: return &kernels_of<F32>;
    }
    return nullptr;
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock::linear_dense
