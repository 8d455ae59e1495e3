#include <cmath>

#include "norm/norm.hpp"
#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::test;

namespace {

std::vector<float> expected(const norm::RmsNormArgs& args) {
    std::vector<float> wanted;
    for (int64_t i = 0; i < args.outer; ++i) {
        for (int64_t j = 0; j < args.inner; ++j) {
            const float* x = args.x + i * args.outer_stride + j * args.inner_stride;
            double squares = 0.0;
            for (int64_t k = 0; k < args.size; ++k) squares += static_cast<double>(x[k]) * x[k];
            const double factor = 1.0 / std::sqrt(squares / static_cast<double>(args.size) + args.eps);
            for (int64_t k = 0; k < args.size; ++k)
                wanted.push_back(static_cast<float>(x[k] * factor * args.weight[j * args.weight_stride + k]));
        }
    }
    return wanted;
}

}  // namespace

TEST(norm_rows) {
    for (const int64_t rows : {0, 1, 2, 7, 33}) {
        for (const int64_t size : {1, 15, 16, 17, 63, 64, 576, 1000}) {
            const Context context(std::to_string(rows) + " rows of " + std::to_string(size));
            const Guarded<float> x(normal_values(rows * size, 1)), weight(normal_values(size, 2)), out(rows * size);
            const norm::RmsNormArgs args{x.data(), rows, 1, size, size, size, weight.data(), 0, 1e-5f, out.data()};
            const std::vector<float> wanted = expected(args);
            for_each_isa(norm::kRmsNorm, [&](auto kernel) {
                run_kernel(kernel, args);
                CHECK_CLOSE(out.data(), wanted.data(), rows * size, 2e-6f, 1e-6f);
            });
        }
    }
}

TEST(norm_heads_with_strides_and_weights_of_their_own) {
    constexpr int64_t kTokens = 3, kHeads = 5, kSize = 24, kHeadStride = 30, kTokenStride = 170;
    const Guarded<float> x(normal_values((kTokens - 1) * kTokenStride + (kHeads - 1) * kHeadStride + kSize, 3, 50.0f));
    const Guarded<float> weight(normal_values(kHeads * kSize, 4)), out(kTokens * kHeads * kSize);
    const norm::RmsNormArgs args{x.data(),      kTokens, kHeads, kTokenStride, kHeadStride,
                                 kSize, weight.data(), kSize, 1e-6f, out.data()};
    const std::vector<float> wanted = expected(args);
    for_each_isa(norm::kRmsNorm, [&](auto kernel) {
        run_kernel(kernel, args);
        CHECK_CLOSE(out.data(), wanted.data(), out.size(), 2e-6f, 1e-6f);
    });
}

TEST(norm_of_zeros_is_zero) {
    const Guarded<float> x(std::vector<float>(64)), weight(normal_values(32, 5)), out(64);
    const std::vector<float> wanted(64);
    for_each_isa(norm::kRmsNorm, [&](auto kernel) {
        run_kernel(kernel, norm::RmsNormArgs{x.data(), 2, 1, 32, 32, 32, weight.data(), 0, 1e-6f, out.data()});
        CHECK_SAME(out.data(), wanted.data(), 64);
    });
}
