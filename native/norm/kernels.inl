// Compiled once per instruction set: the including file defines PENSTOCK_ISA.
#include <cmath>

#include "norm/norm.hpp"
#include "simd/vec.hpp"

namespace penstock::norm {
namespace {

PENSTOCK_INLINE float inverse_rms(const float* x, int64_t size, float eps) {
    f32x16 squares{};
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) {
        const f32x16 value = load16(x + i);
        squares += value * value;
    }
    if (i < size) {
        const f32x16 value = load_some(x + i, size - i);
        squares += value * value;
    }
    return 1.0f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(size) + eps);
}

PENSTOCK_INLINE void scale_row(const float* x, const float* weight, float factor, float* out, int64_t size) {
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) store16(out + i, load16(x + i) * factor * load16(weight + i));
    if (i < size)
        store_some(out + i, load_some(x + i, size - i) * factor * load_some(weight + i, size - i), size - i);
}

}  // namespace

namespace PENSTOCK_ISA {

void rms_norm(const RmsNormArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(1, args.outer, begin, end)) {
        for (int64_t j = 0; j < args.inner; ++j) {
            const float* x = args.x + begin * args.outer_stride + j * args.inner_stride;
            float* out = args.out + (begin * args.inner + j) * args.size;
            scale_row(x, args.weight + j * args.weight_stride, inverse_rms(x, args.size, args.eps), out, args.size);
        }
    }
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock::norm
