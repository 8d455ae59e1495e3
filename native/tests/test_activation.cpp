#include "activation/activation.hpp"

#include <cmath>

#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::test;

namespace {

double silu(double x) { return x / (1.0 + std::exp(-x)); }
double gelu(double x) { return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x))); }

template <class Table>
void check_gate(const Table& table, double (*act)(double), float scale) {
    for (const int64_t rows : {0, 1, 7}) {
        for (const int64_t size : {1, 15, 16, 31, 64, 1000}) {
            const Context context(std::to_string(rows) + " rows of " + std::to_string(size));
            const int64_t stride = 2 * size + 3;
            const Guarded<float> x(normal_values(rows * stride, 1, scale)), out(rows * size);
            std::vector<float> wanted;
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < size; ++j)
                    wanted.push_back(static_cast<float>(act(x[i * stride + j]) * x[i * stride + size + j]));
            for_each_isa(table, [&](auto kernel) {
                run_kernel(kernel, activation::GatedArgs{x.data(), rows, size, stride, out.data(), {}});
                CHECK_CLOSE(out.data(), wanted.data(), rows * size, 3e-6f, 1e-7f * scale * scale);
            });
        }
    }
}

template <class Dense, class Quantized>
void check_quantized(const Dense& dense, const Quantized& quantized) {
    constexpr int64_t kRows = 3, kSize = 160, kBlocks = kRows * kSize / quantize::kBlock;
    const Guarded<float> x(normal_values(kRows * 2 * kSize, 2)), plain(kRows * kSize), scales(kBlocks);
    const Guarded<int8_t> codes(kRows * kSize), zeros(kBlocks);
    const Guarded<int32_t> sums(kBlocks);
    for (int isa = 0; isa < kNumIsas; ++isa) {
        if (dense.find(isa) == nullptr || !can_run(static_cast<Isa>(isa))) continue;
        const Context context(kIsaNames[isa]);
        activation::GatedArgs args{x.data(), kRows, kSize, 2 * kSize, plain.data(),
                                   {codes.data(), scales.data(), zeros.data(), sums.data()}};
        run_kernel(dense[isa], args);
        run_kernel(quantized[isa], args);
        for (int64_t i = 0; i < kRows * kSize; ++i) {
            const int64_t block = i / quantize::kBlock;
            CHECK(std::abs(scales[block] * static_cast<float>(codes[i] - zeros[block]) - plain[i]) <=
                  0.50001f * scales[block]);
        }
    }
}

}  // namespace

TEST(activation_silu) {
    for (const float scale : {1.0f, 30.0f}) check_gate(activation::kSiluAndMul, silu, scale);
}

TEST(activation_gelu) {
    for (const float scale : {1.0f, 30.0f}) check_gate(activation::kGeluAndMul, gelu, scale);
}

TEST(activation_quantized) {
    check_quantized(activation::kSiluAndMul, activation::kSiluAndMulQuantized);
    check_quantized(activation::kGeluAndMul, activation::kGeluAndMulQuantized);
}
