#include <cstring>

#include "ceilings/ceilings.hpp"
#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::test;

TEST(ceilings_every_byte_is_read) {
    constexpr int64_t kChunk = 1024, kChunks = 3;
    std::vector<int32_t> words(kChunk * kChunks / sizeof(int32_t));
    for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<int32_t>(i * 2654435761u);
    int32_t wanted[16] = {};  // lane by lane: chunks and rounds are multiples of sixteen words
    for (size_t i = 0; i < words.size(); ++i) wanted[i % 16] ^= words[i];
    for (const int64_t repeats : {1, 3}) {  // an even number of times is as good as none
        for_each_isa(ceilings::kRead, [&](auto kernel) {
            int32_t found[16] = {};
            const ceilings::ReadArgs args{reinterpret_cast<const std::byte*>(words.data()), kChunk, kChunks, repeats,
                                          false, reinterpret_cast<std::byte*>(found)};
            std::atomic<int64_t> queue{0};
            kernel(args, Share{0, 1, &queue});
            CHECK_SAME(found, wanted, 16);
        });
    }
}

TEST(ceilings_all_products_are_computed) {
    constexpr int64_t kItems = 3;
    // A lane of integers is a sum over some of its bytes: each of them has to count.
    const std::vector<float> ones(32, 1.0f);
    const std::vector<int8_t> codes(32 * sizeof(float), 1);
    for_each_isa(ceilings::kArithmetic, [&](auto arithmetic) {
        for (const auto kind : {ceilings::Kind::f32, ceilings::Kind::i8, ceilings::Kind::bf16}) {
            const ceilings::Arithmetic found = arithmetic(kind);
            if (found.kernel == nullptr) continue;
            CHECK(found.operations >= ceilings::kRounds * 8);
            const void* operands = ones.data();
            if (kind == ceilings::Kind::i8) operands = codes.data();
            float sum[16] = {};
            std::atomic<int64_t> queue{0};
            found.kernel({static_cast<const std::byte*>(operands), kItems, reinterpret_cast<std::byte*>(sum)},
                         Share{0, 1, &queue});
            if (kind == ceilings::Kind::f32) CHECK(sum[0] == 1.0f + kItems * ceilings::kRounds);
            CHECK(std::memcmp(sum, operands, sizeof(float)) != 0);  // where every sum starts
        }
    });
}
