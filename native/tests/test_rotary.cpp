#include "rotary/rotary.hpp"

#include <cmath>

#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::test;

TEST(rotary_tables_up_to_a_million) {
    const std::vector<int64_t> far = {0, 1, 2, 3, 22, 355, 4096, 65537, 710000, 999983, 1048576};
    const Guarded<int64_t> positions(far);
    const int64_t tokens = positions.size();
    for (const int64_t half : {1, 3, 8, 20, 64}) {
        const Context context("half " + std::to_string(half));
        const Guarded<float> frequencies(half), cos(tokens * 2 * half), sin(tokens * 2 * half);
        for (int64_t j = 0; j < half; ++j)
            frequencies[j] = std::pow(10000.0f, -static_cast<float>(j) / static_cast<float>(half));
        std::vector<float> wanted_cos, wanted_sin;
        for (const int64_t position : far) {
            for (int64_t j = 0; j < 2 * half; ++j) {
                const double angle = static_cast<float>(position) * frequencies[j % half];
                wanted_cos.push_back(static_cast<float>(std::cos(angle)) * 1.25f);
                wanted_sin.push_back((j < half ? -1.25f : 1.25f) * static_cast<float>(std::sin(angle)));
            }
        }
        for_each_isa(rotary::kTables, [&](auto kernel) {
            run_kernel(kernel, rotary::TablesArgs{positions.data(), tokens, frequencies.data(), half, 1.25f, cos.data(),
                                                  sin.data()});
            CHECK_CLOSE(cos.data(), wanted_cos.data(), cos.size(), 1.2e-7f, 0.0f);
            CHECK_CLOSE(sin.data(), wanted_sin.data(), sin.size(), 1.2e-7f, 0.0f);
        });
    }
}

TEST(rotary_of_strided_heads) {
    constexpr int64_t kTokens = 5, kHeads = 3;
    for (const int64_t half : {1, 5, 16, 24, 32}) {
        const Context context("half " + std::to_string(half));
        const int64_t size = 2 * half, head_stride = size + 1, token_stride = (kHeads + 1) * head_stride;
        const Guarded<float> x(normal_values(kTokens * token_stride, 1)), out(kTokens * kHeads * size);
        const Guarded<float> cos(normal_values(kTokens * size, 2)), sin(normal_values(kTokens * size, 3));
        std::vector<float> wanted;
        for (int64_t i = 0; i < kTokens; ++i) {
            for (int64_t j = 0; j < kHeads; ++j) {
                const float* head = x.data() + i * token_stride + j * head_stride;
                for (int64_t k = 0; k < size; ++k) {
                    const int64_t angle = i * size + half + k % half;
                    const double other = k < half ? -static_cast<double>(head[k + half]) : head[k - half];
                    wanted.push_back(static_cast<float>(static_cast<double>(head[k]) * cos[angle] + other * sin[angle]));
                }
            }
        }
        for_each_isa(rotary::kRotary, [&](auto kernel) {
            run_kernel(kernel, rotary::RotaryArgs{x.data(), kTokens, kHeads, half, token_stride, head_stride, cos.data(),
                                                  sin.data(), out.data()});
            CHECK_CLOSE(out.data(), wanted.data(), out.size(), 1e-6f, 1e-6f);
        });
    }
}
