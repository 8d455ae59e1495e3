// bfloat16 alone, on bfmmla: the other formats' kernels are those of neon.
#include <arm_neon.h>

#define PENSTOCK_ISA neon_bf16
#define PENSTOCK_LANES 4
#define PENSTOCK_VECTORS 4
#include "linear_dense/kernels.inl"

namespace penstock::linear_dense {
namespace {

// A register of weights has four columns of two outputs, one of activations the same columns of two rows, and one of
// sums two outputs by two rows. The second row beside a last odd one is that row again.
template <int kRows>
struct PairSums {
    static constexpr int kPairs = (kRows + 1) / 2, kOutPairs = kTile / 2;

    float32x4_t sums[kPairs][kOutPairs];

    PairSums() {
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 8
            for (int o = 0; o < kOutPairs; ++o) sums[p][o] = vdupq_n_f32(0.0f);
    }

    PENSTOCK_INLINE void add(const std::byte* weight, const uint32_t* x) {
        bfloat16x8_t rows[kPairs];
#pragma GCC unroll 4
        for (int p = 0; p < kPairs; ++p) {
            const uint32x2_t first = vld1_u32(x + p * 4);
            const uint32x2_t second = p * 2 + 1 < kRows ? vld1_u32(x + p * 4 + 2) : first;
            rows[p] = vreinterpretq_bf16_u32(vcombine_u32(first, second));
        }
#pragma GCC unroll 8
        for (int o = 0; o < kOutPairs; ++o) {
            const bfloat16x8_t outs = vld1q_bf16(reinterpret_cast<const bfloat16_t*>(weight + o * 16));
#pragma GCC unroll 4
            for (int p = 0; p < kPairs; ++p) sums[p][o] = vbfmmlaq_f32(sums[p][o], outs, rows[p]);
        }
    }

    PENSTOCK_INLINE void store(float (*result)[kTile]) const {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
            for (int o = 0; o < kOutPairs; o += 2) {
                const float32x4_t a = sums[r / 2][o], b = sums[r / 2][o + 1];
                vst1q_f32(&result[r][o * 2], r % 2 == 0 ? vuzp1q_f32(a, b) : vuzp2q_f32(a, b));
            }
    }
};

struct Bf16 {
    using X = uint32_t;  // two columns
    template <int kRows_>
    using Sums = PairSums<kRows_>;
    static constexpr int kCols = 4, kXs = 2, kWordBytes = 8, kRows = 6;

    static PENSTOCK_INLINE void arrange(const float* x, X* to) {
        for (int i = 0; i < kPiece; i += 8) {
            const bfloat16x8_t low = vcvtq_low_bf16_f32(vld1q_f32(x + i));
            vst1q_u32(to + i / 2, vreinterpretq_u32_bf16(vcvtq_high_bf16_f32(low, vld1q_f32(x + i + 4))));
        }
    }

    static float value(const std::byte* from) { return widen_bf16(from); }
};

}  // namespace

namespace neon_bf16 {

const Kernels* kernels(Format format) { return format == Format::bf16 ? &kernels_of<Bf16> : nullptr; }

}  // namespace neon_bf16
}  // namespace penstock::linear_dense
