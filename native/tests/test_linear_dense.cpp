#include <cmath>
#include <cstring>

#include "linear_dense/linear_dense.hpp"
#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::linear_dense;
using namespace penstock::test;

namespace {

constexpr Format kFormats[] = {Format::bf16, Format::f16, Format::f32};

uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bf16(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

float from_f16(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double size = exponent == 31  ? (fraction ? NAN : INFINITY)
                        : exponent == 0 ? std::ldexp(fraction, -24)
                                        : std::ldexp(1024 + fraction, exponent - 25);
    return static_cast<float>(half & 0x8000 ? -size : size);
}

// A weight as a checkpoint has it, and its values in float32.
struct Weight {
    Weight(Format format_, int64_t outs_, int64_t cols_) : format(format_), outs(outs_), cols(cols_) {
        const std::vector<float> numbers = normal_values(outs * cols, 7);
        for (const float number : numbers) {
            // float16: any sign and fraction, sizes from 1/4 to 4
            const long half = format == Format::bf16 ? to_bf16(number)
                                                     : 0x3400 + (std::lround(number * 2000.0f) & 0x8fff);
            halves.push_back(static_cast<uint16_t>(half));
            values.push_back(format == Format::f32   ? number
                             : format == Format::f16 ? from_f16(halves.back())
                             : from_bf16(halves.back()));
        }
    }

    const void* data() const { return format == Format::f32 ? static_cast<const void*>(values.data()) : halves.data(); }

    Format format;
    int64_t outs, cols;
    std::vector<uint16_t> halves;
    std::vector<float> values;
};

struct Packed : Guarded<unsigned char> {
    Packed(const Kernels& kernels, const Weight& weight)
        : Guarded(packed_bytes(kernels, weight.format, weight.outs, weight.cols)) {
        run_kernel(kernels.pack, PackArgs{weight.data(), weight.outs, weight.cols, weight.cols, data()});
    }
};

std::vector<float> expected(const Weight& weight, const float* x, int64_t rows, int64_t stride, const float* bias) {
    std::vector<float> wanted;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t out = 0; out < weight.outs; ++out) {
            double sum = bias == nullptr ? 0.0 : bias[out];
            for (int64_t col = 0; col < weight.cols; ++col) {
                const float value = x[r * stride + col];
                sum += static_cast<double>(weight.format == Format::bf16 ? from_bf16(to_bf16(value)) : value) *
                       weight.values[static_cast<size_t>(out * weight.cols + col)];
            }
            wanted.push_back(static_cast<float>(sum));
        }
    return wanted;
}

// Arranges x in a step before, or in the kernel, in one copy for each of the pool's threads.
void multiply(const Kernels& kernels, const Weight& weight, const void* packed, const Guarded<float>& x, int64_t rows,
              int64_t stride, const float* bias, bool in_kernel, float* out, int64_t out_stride) {
    const int64_t copies = in_kernel ? ThreadPool::instance().size() : 1;
    const Guarded<unsigned char> arranged(copies * arranged_bytes(kernels, rows, weight.cols));
    const ArrangeArgs arrange{x.data(), rows, weight.cols, stride, arranged.data()};
    if (!in_kernel) run_kernel(kernels.arrange, arrange);
    run_kernel(kernels.linear, LinearArgs{arrange, in_kernel, packed, bias, weight.outs, out, out_stride});
}

template <class Use>
void for_each_format(Use use) {
    for (const Format format : kFormats)
        for_each_isa(kKernels, [&](auto kernels) {
            const Context context("format " + std::to_string(static_cast<int>(format)));
            if (kernels(format) != nullptr) use(*kernels(format), format);
        });
}

}  // namespace

TEST(linear_dense_rows) {
    for (const auto& [outs, cols] : {std::pair<int64_t, int64_t>{1, 1}, {33, 31}, {64, 64}, {50, 129}, {37, 576}}) {
        for_each_format([&, outs = outs, cols = cols](const Kernels& kernels, Format format) {
            const Weight weight(format, outs, cols);
            const Packed packed(kernels, weight);
            const Guarded<float> bias(normal_values(outs, 5));
            for (const int64_t rows : {1, 2, 4, 5, 7, 12, 13, 40}) {
                const Context context(std::to_string(rows) + " rows of " + std::to_string(cols));
                const int64_t stride = cols + 3;
                const Guarded<float> x(normal_values((rows - 1) * stride + cols, 3));
                const std::vector<float> wanted = expected(weight, x.data(), rows, stride, bias.data());
                const Guarded<float> out(rows * outs);
                for (const bool in_kernel : {false, true}) {
                    multiply(kernels, weight, packed.data(), x, rows, stride, bias.data(), in_kernel, out.data(), outs);
                    const float absolute = 2e-5f * std::sqrt(static_cast<float>(cols));
                    CHECK_CLOSE(out.data(), wanted.data(), out.size(), 1e-5f, absolute);
                }
            }
        });
    }
}

TEST(linear_dense_row_is_the_same_alone_and_in_a_batch) {
    constexpr int64_t kRows = 60, kOuts = 40, kCols = 100;
    for_each_format([](const Kernels& kernels, Format format) {
        const Weight weight(format, kOuts, kCols);
        const Packed packed(kernels, weight);
        const Guarded<float> x(normal_values(kRows * kCols, 3)), alone(kRows * kOuts), together(kRows * kOuts);
        for (int64_t r = 0; r < kRows; ++r) {
            const Guarded<float> one(std::vector<float>(x.data() + r * kCols, x.data() + (r + 1) * kCols));
            multiply(kernels, weight, packed.data(), one, 1, kCols, nullptr, true, alone.data() + r * kOuts, kOuts);
        }
        for (int64_t rows = 1; rows <= kRows; ++rows) {
            multiply(kernels, weight, packed.data(), x, rows, kCols, nullptr, false, together.data(), kOuts);
            CHECK_SAME(together.data(), alone.data(), rows * kOuts);
        }
    });
}

TEST(linear_dense_argmax) {
    constexpr int64_t kRows = 7, kOuts = 333, kCols = 20, kChunkTiles = 2;
    for_each_format([](const Kernels& kernels, Format format) {
        const Weight weight(format, kOuts, kCols);
        const Packed packed(kernels, weight);
        Guarded<float> x(normal_values(kRows * kCols, 3)), out(kRows * kOuts), values(kRows);
        for (int64_t col = 0; col < kCols; ++col) x[2 * kCols + col] = 0.0f;  // all outputs equal
        x[3 * kCols] = NAN;
        multiply(kernels, weight, packed.data(), x, kRows, kCols, nullptr, false, out.data(), kOuts);
        const int64_t chunks = divide_up(divide_up(kOuts, kernels.layout.tile), kChunkTiles);
        const Guarded<float> candidates(chunks * kRows);
        const Guarded<int64_t> candidate_ids(chunks * kRows), ids(kRows);
        const Guarded<unsigned char> arranged(arranged_bytes(kernels, kRows, kCols));
        const ArrangeArgs arrange{x.data(), kRows, kCols, kCols, arranged.data()};
        run_kernel(kernels.arrange, arrange);
        run_kernel(kernels.argmax, ArgmaxArgs{{arrange, false, packed.data(), nullptr, kOuts, nullptr, 0}, kChunkTiles,
                                              candidates.data(), candidate_ids.data()});
        const MergeArgs last{candidates.data(), candidate_ids.data(), chunks, kRows, values.data(), ids.data()};
        run_kernel(&merge, last);
        for (int64_t r = 0; r < kRows; ++r) {
            int64_t best = 0;
            for (int64_t i = 1; i < kOuts; ++i)
                if (out[r * kOuts + i] > out[r * kOuts + best]) best = i;
            CHECK(ids[r] == best);
            CHECK(std::memcmp(&values[r], &out[r * kOuts + best], sizeof(float)) == 0 || std::isnan(values[r]));
            CHECK(std::isnan(values[r]) == (r == 3));
        }
    });
}

TEST(linear_dense_embedding) {
    for_each_format([](const Kernels& kernels, Format format) {
        const Weight weight(format, 50, 33);
        const Packed packed(kernels, weight);
        const Guarded<int64_t> ids(std::vector<int64_t>{49, 0, 7, 50, -1});
        const Guarded<float> out(ids.size() * 33);
        run_kernel(kernels.embed, EmbedArgs{packed.data(), 50, 33, ids.data(), ids.size(), out.data()});
        for (int64_t i = 0; i < 3; ++i) CHECK_SAME(out.data() + i * 33, weight.values.data() + ids[i] * 33, 33);
        for (int64_t i = 3 * 33; i < 5 * 33; ++i) CHECK(std::isnan(out[i]));
    });
}

TEST(linear_dense_every_float16) {
    std::vector<uint16_t> halves;
    for (int bits = 0; bits < 65536; ++bits) halves.push_back(static_cast<uint16_t>(bits));
    for_each_isa(kKernels, [&](auto find) {
        const Kernels* kernels = find(Format::f16);
        if (kernels == nullptr) return;
        const Guarded<unsigned char> packed(packed_bytes(*kernels, Format::f16, 65536, 1));
        run_kernel(kernels->pack, PackArgs{halves.data(), 65536, 1, 1, packed.data()});
        const Guarded<float> one(std::vector<float>{1.0f}), out(65536);
        const Guarded<unsigned char> arranged(arranged_bytes(*kernels, 1, 1) * ThreadPool::instance().size());
        const ArrangeArgs arrange{one.data(), 1, 1, 1, arranged.data()};
        run_kernel(kernels->linear, LinearArgs{arrange, true, packed.data(), nullptr, 65536, out.data(), 65536});
        std::vector<float> wanted;
        for (const uint16_t half : halves) wanted.push_back(from_f16(half));
        CHECK_CLOSE(out.data(), wanted.data(), 65536, 0.0f, 0.0f);
    });
}
