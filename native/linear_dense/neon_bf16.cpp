// bfloat16 alone: the other formats' kernels are those of neon.
#include <arm_neon.h>

#define PENSTOCK_ISA neon_bf16
#define PENSTOCK_LANES 4
#define PENSTOCK_VECTORS 4
#include "linear_dense/kernels.inl"

namespace penstock::linear_dense {
namespace {

struct Bf16 {
    using X = uint32_t;  // two columns
    using Weights = bfloat16x8_t;
    static constexpr int kCols = 2, kXs = 1, kWordBytes = 4, kRows = 6;

    static PENSTOCK_INLINE Weights load(const std::byte* from) {
        return vld1q_bf16(reinterpret_cast<const bfloat16_t*>(from));
    }

    static PENSTOCK_INLINE Floats add(Floats sum, Weights weights, const X* x) {
        return (Floats)vbfdotq_f32((float32x4_t)sum, weights, vreinterpretq_bf16_u32(vdupq_n_u32(*x)));
    }

    static PENSTOCK_INLINE void arrange(const float* x, X* to) {
        uint16_t rounded[kPiece];
        for (int i = 0; i < kPiece; i += 16) narrow_bf16(rounded + i, load16(x + i));
        std::memcpy(to, rounded, sizeof rounded);
    }

    static float value(const std::byte* from) { return widen_bf16(from); }
};

}  // namespace

namespace neon_bf16 {

const Kernels* kernels(Format format) { return format == Format::bf16 ? &kernels_of<Bf16> : nullptr; }

}  // namespace neon_bf16
}  // namespace penstock::linear_dense
