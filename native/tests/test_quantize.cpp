#include "quantize/quantize.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "norm/norm.hpp"
#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::test;

namespace {

constexpr int64_t kBlock = quantize::kBlock;

struct Output {
    Guarded<int8_t> codes, zeros;
    Guarded<float> scales;
    Guarded<int32_t> sums;

    explicit Output(int64_t values)
        : codes(values), zeros(values / kBlock), scales(values / kBlock), sums(values / kBlock) {}
    quantize::QuantizedRows pointers() const { return {codes.data(), scales.data(), zeros.data(), sums.data()}; }

    // Every value within half a step of x, the codes of a block from one of its ends to the other, its sum theirs.
    void check(const float* x) const {
        for (int64_t block = 0; block < scales.size(); ++block) {
            const float* values = x + block * kBlock;
            float low = 0.0f, high = 0.0f;
            int32_t sum = 0;
            for (int64_t i = 0; i < kBlock; ++i) {
                low = std::min(low, values[i]);
                high = std::max(high, values[i]);
                const int step = codes[block * kBlock + i] - zeros[block];
                sum += step;
                CHECK(std::abs(scales[block] * static_cast<float>(step) - values[i]) <= 0.50001f * scales[block] + 1e-30f);
            }
            CHECK(std::abs(scales[block] - (high - low) / 254.0f) <= 2e-7f * scales[block]);
            CHECK(sum == sums[block]);
        }
    }
};

}  // namespace

TEST(quantize_rows_within_half_a_step) {
    for (const int64_t rows : {0, 1, 3}) {
        for (const int64_t blocks : {1, 2, 3, 4, 5, 18}) {
            const Context context(std::to_string(rows) + " rows of " + std::to_string(blocks) + " blocks");
            const int64_t size = blocks * kBlock;
            const Guarded<float> x(normal_values(rows * size, 1));
            for_each_isa(quantize::kQuantizeRows, [&](auto kernel) {
                const Output out(rows * size);
                run_kernel(kernel, quantize::QuantizeArgs{x.data(), rows, size, size, out.pointers()});
                out.check(x.data());
            });
        }
    }
}

TEST(quantize_strided_rows_like_contiguous_ones) {
    constexpr int64_t kRows = 3, kSize = 96, kStride = 111;
    const Guarded<float> x(normal_values((kRows - 1) * kStride + kSize, 2));
    std::vector<float> packed;
    for (int64_t i = 0; i < kRows; ++i)
        packed.insert(packed.end(), x.data() + i * kStride, x.data() + i * kStride + kSize);
    for_each_isa(quantize::kQuantizeRows, [&](auto kernel) {
        const Output out(kRows * kSize);
        run_kernel(kernel, quantize::QuantizeArgs{x.data(), kRows, kSize, kStride, out.pointers()});
        out.check(packed.data());
    });
}

TEST(quantize_blocks_that_are_not_finite_poison_themselves_alone) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const float kNan = std::nanf("");
    for (const float bad : {kInfinity, -kInfinity, kNan}) {
        std::vector<float> values = normal_values(6 * kBlock, 3);
        values[2 * kBlock + 7] = bad;
        const Guarded<float> x(values);
        for_each_isa(quantize::kQuantizeRows, [&](auto kernel) {
            const Output out(6 * kBlock);
            run_kernel(kernel, quantize::QuantizeArgs{x.data(), 1, 6 * kBlock, 6 * kBlock, out.pointers()});
            CHECK(!std::isfinite(out.scales[2]));
            CHECK(out.sums[2] == 0 && out.zeros[2] == 0 && out.codes[2 * kBlock + 7] == 0);
            for (const int64_t block : {0, 1, 3, 4, 5}) CHECK(std::isfinite(out.scales[block]));
        });
    }
}

TEST(quantize_constant_and_tiny_blocks) {
    std::vector<float> values(4 * kBlock);
    for (int64_t i = 0; i < kBlock; ++i) {
        values[static_cast<size_t>(kBlock + i)] = 3.0f;
        values[static_cast<size_t>(2 * kBlock + i)] = -5.0f;
        values[static_cast<size_t>(3 * kBlock + i)] = 1e-38f;
    }
    const Guarded<float> x(values);
    for_each_isa(quantize::kQuantizeRows, [&](auto kernel) {
        const Output out(4 * kBlock);
        run_kernel(kernel, quantize::QuantizeArgs{x.data(), 1, 4 * kBlock, 4 * kBlock, out.pointers()});
        CHECK(out.scales[0] == 0.0f && out.scales[3] == 0.0f && out.codes[0] == 0 && out.codes[3 * kBlock] == 0);
        CHECK(out.codes[kBlock] - out.zeros[1] == 254 && out.codes[2 * kBlock] - out.zeros[2] == -254);
    });
}

TEST(quantize_norms_like_a_norm_and_then_a_quantization) {
    constexpr int64_t kRows = 5, kSize = 160;
    const Guarded<float> x(normal_values(kRows * kSize, 4)), residual(normal_values(kRows * kSize, 5));
    const Guarded<float> weight(normal_values(kSize, 6)), plain(kRows * kSize), sum(kRows * kSize);
    const Guarded<float> other_sum(kRows * kSize);
    std::vector<float> total;
    for (int64_t i = 0; i < kRows * kSize; ++i) total.push_back(x[i] + residual[i]);
    for (int isa = 0; isa < kNumIsas; ++isa) {
        if (norm::kAddRmsNorm.find(isa) == nullptr || !can_run(static_cast<Isa>(isa))) continue;
        const Context context(kIsaNames[isa]);
        run_kernel(norm::kAddRmsNorm[isa], norm::NormRowsArgs{x.data(), kRows, kSize, kSize, residual.data(), kSize,
                                                              sum.data(), weight.data(), 1e-5f, plain.data(), {}});
        CHECK_SAME(sum.data(), total.data(), kRows * kSize);
        const Output added(kRows * kSize), alone(kRows * kSize);
        run_kernel(norm::kAddRmsNormQuantized[isa],
                   norm::NormRowsArgs{x.data(), kRows, kSize, kSize, residual.data(), kSize, other_sum.data(),
                                      weight.data(), 1e-5f, nullptr, added.pointers()});
        CHECK_SAME(other_sum.data(), total.data(), kRows * kSize);
        added.check(plain.data());
        run_kernel(norm::kRmsNormQuantized[isa],
                   norm::NormRowsArgs{sum.data(), kRows, kSize, kSize, nullptr, 0, nullptr, weight.data(), 1e-5f,
                                      nullptr, alone.pointers()});
        CHECK_SAME(alone.codes.data(), added.codes.data(), kRows * kSize);
    }
}
