#include "rows/rows.hpp"

#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::test;

TEST(rows_gather_add_and_scale) {
    constexpr int64_t kRows = 6, kStride = 50;
    const Guarded<int64_t> picks(std::vector<int64_t>{5, 0, 0, 3});
    for (const int64_t size : {1, 16, 17, 47}) {
        const Context context("size " + std::to_string(size));
        const Guarded<float> a(normal_values((kRows - 1) * kStride + size, 1)), b(normal_values(kRows * size, 2));
        const Guarded<float> gathered(picks.size() * size), out(kRows * size);
        std::vector<float> wanted_rows, wanted_sums, wanted_products;
        for (int64_t i = 0; i < picks.size(); ++i)
            for (int64_t j = 0; j < size; ++j) wanted_rows.push_back(a[picks[i] * kStride + j]);
        for (int64_t i = 0; i < kRows * size; ++i) {
            const float value = a[i / size * kStride + i % size];
            wanted_sums.push_back(value + b[i]);
            wanted_products.push_back(value * 24.5f);
        }
        for_each_isa(rows::kGather, [&](auto kernel) {
            run_kernel(kernel, rows::GatherArgs{a.data(), kStride, size, picks.data(), picks.size(), gathered.data()});
            CHECK_SAME(gathered.data(), wanted_rows.data(), gathered.size());
        });
        for_each_isa(rows::kAdd, [&](auto kernel) {
            run_kernel(kernel, rows::AddArgs{a.data(), b.data(), kRows, size, kStride, size, out.data()});
            CHECK_SAME(out.data(), wanted_sums.data(), out.size());
        });
        for_each_isa(rows::kScale, [&](auto kernel) {
            run_kernel(kernel, rows::ScaleArgs{a.data(), kRows, size, kStride, 24.5f, out.data()});
            CHECK_SAME(out.data(), wanted_products.data(), out.size());
        });
    }
}
