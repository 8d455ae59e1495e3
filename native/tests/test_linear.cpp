#include <cmath>
#include <cstring>

#include "linear/linear.hpp"
#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::linear;
using namespace penstock::test;

namespace {

struct Shape {
    int64_t outs, cols;
    int bits, group, scale_bits;
    bool has_min;
    int zero_point;
};

constexpr Shape kShapes[] = {
    {1, 32, 4, 32, 16, false, 8},    {16, 64, 4, 64, 16, true, 0},    {37, 96, 4, 32, 32, true, 0},
    {50, 576, 4, 32, 16, true, 0},   {20, 128, 5, 32, 16, true, 0},   {33, 128, 5, 128, 32, false, 16},
    {18, 256, 6, 16, 32, false, 32}, {40, 96, 8, 32, 16, false, 128}, {17, 160, 8, 160, 32, true, 0},
    {48, 64, 4, 16, 32, true, 0},    {31, 64, 8, 16, 16, false, 128}, {15, 96, 5, 16, 16, true, 3},
};

// Of a float16 from 1/16 to 1/2.
uint16_t scale_bits_of(int number) { return static_cast<uint16_t>(0x2c00 + (number & 0x0bff)); }

float scale_of(uint16_t half) {
    return static_cast<float>(std::ldexp(1024 + (half & 1023), (half >> 10 & 31) - 25));
}

// A weight as a checkpoint has it.
struct Plain {
    explicit Plain(const Shape& shape_) : shape(shape_), groups(shape_.cols / shape_.group) {
        for (const int code : uniform_integers(shape.outs * shape.cols, 0, (1 << shape.bits) - 1, 1))
            codes.push_back(static_cast<uint8_t>(code));
        add_scales(2, half_scales, scales);
        add_scales(3, half_mins, mins);
    }

    void add_scales(uint32_t seed, std::vector<uint16_t>& halves, std::vector<float>& floats) const {
        for (const int number : uniform_integers(shape.outs * groups, 0, 1 << 20, seed)) {
            halves.push_back(scale_bits_of(number));
            floats.push_back(scale_of(halves.back()));
        }
    }

    Weight weight(const uint8_t* data) const {
        return {data,        shape.outs,       shape.cols,    shape.bits,
                shape.group, shape.scale_bits, shape.has_min, shape.zero_point};
    }

    const void* stored(const std::vector<uint16_t>& halves, const std::vector<float>& floats) const {
        return shape.scale_bits == 16 ? static_cast<const void*>(halves.data()) : floats.data();
    }

    float value(int64_t out, int64_t col) const {
        const size_t group = static_cast<size_t>(out * groups + col / shape.group);
        const int code = codes[static_cast<size_t>(out * shape.cols + col)] - shape.zero_point;
        return scales[group] * static_cast<float>(code) + (shape.has_min ? mins[group] : 0.0f);
    }

    Shape shape;
    int64_t groups;
    std::vector<uint8_t> codes;
    std::vector<uint16_t> half_scales, half_mins;
    std::vector<float> scales, mins;
};

struct Packed : Guarded<uint8_t> {
    Packed(const Plain& plain, int isa)
        : Guarded(num_tiles(plain.weight(nullptr)) * tile_bytes(plain.weight(nullptr))) {
        run_kernel(&pack, PackArgs{plain.codes.data(), plain.stored(plain.half_scales, plain.scales),
                                   plain.shape.has_min ? plain.stored(plain.half_mins, plain.mins) : nullptr, data(),
                                   plain.weight(nullptr), span_of(isa)});
    }
};

struct Rows {
    Rows(int64_t rows_, int64_t cols)
        : rows(rows_), codes(rows_ * cols), zeros(rows_ * (cols / 32)), sums(zeros.size()),
          scales(normal_values(zeros.size(), 6)) {
        const std::vector<int> numbers = uniform_integers(rows * cols, -128, 127, 4);
        const std::vector<int> offsets = uniform_integers(zeros.size(), -128, 127, 5);
        for (int64_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<int8_t>(numbers[static_cast<size_t>(i)]);
        for (int64_t b = 0; b < zeros.size(); ++b) {
            zeros[b] = static_cast<int8_t>(offsets[static_cast<size_t>(b)]);
            sums[b] = 0;
            for (int64_t c = 0; c < 32; ++c) sums[b] += codes[b * 32 + c] - zeros[b];
        }
    }

    QuantizedRows from(int64_t begin, int64_t end) const {
        const int64_t blocks = zeros.size() / rows;
        return {codes.data() + begin * blocks * 32, scales.data() + begin * blocks, zeros.data() + begin * blocks,
                sums.data() + begin * blocks, end - begin};
    }

    int64_t rows;
    Guarded<int8_t> codes, zeros;
    Guarded<int32_t> sums;
    Guarded<float> scales;
};

bool has_fma(Isa isa) {
#if defined(__x86_64__)
    return isa != Isa::baseline;
#else
    return isa == Isa::neon || isa == Isa::baseline;
#endif
}

// What the header of linear.hpp says, operation by operation.
std::vector<float> expected(const Plain& plain, const Rows& x, const float* bias, bool fused) {
    const Shape& s = plain.shape;
    const int64_t step = s.group < 32 ? 16 : 32, blocks = s.cols / 32;
    const auto add = [&](float a, float b, float c) {
        if (fused) return std::fma(a, b, c);
        const volatile float product = a * b;
        return product + c;
    };
    std::vector<float> wanted;
    for (int64_t r = 0; r < x.rows; ++r)
        for (int64_t out = 0; out < s.outs; ++out) {
            float acc = 0.0f;
            for (int64_t first = 0; first < s.cols; first += step) {
                const int64_t block = r * blocks + first / 32, group = out * plain.groups + first / s.group;
                int32_t dot = 0, sum = 0;
                for (int64_t c = first; c < first + step; ++c) {
                    const int32_t row = x.codes[r * s.cols + c] - x.zeros[block];
                    dot += (plain.codes[static_cast<size_t>(out * s.cols + c)] - s.zero_point) * row;
                    sum += row;
                }
                acc = add(static_cast<float>(dot), plain.scales[static_cast<size_t>(group)] * x.scales[block], acc);
                if (s.has_min)
                    acc = add(plain.mins[static_cast<size_t>(group)], x.scales[block] * static_cast<float>(sum), acc);
            }
            wanted.push_back(acc + bias[out]);
        }
    return wanted;
}

// For every shape, instruction set and weight packed for it.
template <class Table, class Use>
void for_each_weight(const Table& table, Use use) {
    for (const Shape& shape : kShapes) {
        const Context words(std::to_string(shape.bits) + " bits in groups of " + std::to_string(shape.group));
        const Plain plain(shape);
        for (int isa = 0; isa < kNumIsas; ++isa) {
            const auto kernel = table.find(isa);
            if (kernel == nullptr || !can_run(static_cast<Isa>(isa))) continue;
            const Context set(kIsaNames[isa]);
            const Packed packed(plain, isa);
            use(plain, plain.weight(packed.data()), kernel, static_cast<Isa>(isa));
        }
    }
}

}  // namespace

TEST(linear_is_what_its_header_says_bit_by_bit) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 20}) {
        const Context words(std::to_string(rows) + " rows");
        for_each_weight(kLinear, [&](const Plain& plain, const Weight& weight, auto kernel, Isa isa) {
            const Rows x(rows, plain.shape.cols);
            const Guarded<float> bias(normal_values(plain.shape.outs, 8));
            const int64_t stride = plain.shape.outs + 3;
            const Guarded<float> out((rows - 1) * stride + plain.shape.outs);
            run_kernel(kernel, LinearArgs{x.from(0, rows), weight, bias.data(), out.data(), stride});
            const std::vector<float> wanted = expected(plain, x, bias.data(), has_fma(isa));
            for (int64_t r = 0; r < rows; ++r)
                CHECK_SAME(out.data() + r * stride, wanted.data() + r * plain.shape.outs, plain.shape.outs);
        });
    }
}

TEST(linear_row_is_the_same_alone_and_in_a_batch) {
    constexpr int64_t kRows = 150;  // two panels
    for_each_weight(kLinear, [&](const Plain& plain, const Weight& weight, auto kernel, Isa) {
        const int64_t outs = plain.shape.outs;
        const Rows x(kRows, plain.shape.cols);
        const Guarded<float> alone(kRows * outs), together(kRows * outs);
        for (int64_t r = 0; r < kRows; ++r)
            run_kernel(kernel, LinearArgs{x.from(r, r + 1), weight, nullptr, alone.data() + r * outs, outs});
        for (const int64_t rows : {2, 6, 7, 11, 31, 150}) {
            run_kernel(kernel, LinearArgs{x.from(0, rows), weight, nullptr, together.data(), outs});
            CHECK_SAME(together.data(), alone.data(), rows * outs);
        }
    });
}

TEST(linear_argmax_agrees_with_linear) {
    constexpr int64_t kRows = 9;
    for (int isa = 0; isa < kNumIsas; ++isa) {
        const auto kernel = kArgmax.find(isa);
        if (kernel == nullptr || !can_run(static_cast<Isa>(isa))) continue;
        const Context set(kIsaNames[isa]);
        const Plain plain({600, 64, 4, 32, 16, true, 0});
        const Packed packed(plain, isa);
        const Weight weight = plain.weight(packed.data());
        const Rows x(kRows, 64);
        x.scales[2] = NAN;  // of row 1
        for (int64_t b = 4; b < 6; ++b) x.scales[b] = 0.0f;  // row 2: all outputs equal
        const Guarded<float> out(kRows * 600);
        run_kernel(kLinear[isa], LinearArgs{x.from(0, kRows), weight, nullptr, out.data(), 600});
        constexpr int64_t kChunks = (600 + kArgmaxChunk - 1) / kArgmaxChunk;
        const Guarded<float> values(kChunks * kRows);
        const Guarded<int64_t> ids(kChunks * kRows);
        run_kernel(kernel, ArgmaxArgs{x.from(0, kRows), weight, values.data(), ids.data()});
        for (int64_t chunk = 0; chunk < kChunks; ++chunk)
            for (int64_t r = 0; r < kRows; ++r) {
                const float* row = out.data() + r * 600;
                int64_t best = chunk * kArgmaxChunk;
                for (int64_t i = best + 1; i < 600 && i < (chunk + 1) * kArgmaxChunk; ++i)
                    if (row[i] > row[best]) best = i;
                CHECK(ids[chunk * kRows + r] == best);
                CHECK(values[chunk * kRows + r] == row[best] || (r == 1 && std::isnan(values[chunk * kRows + r])));
            }
    }
}

TEST(linear_embedding_gives_the_values_of_the_weight) {
    for_each_weight(kLinear, [&](const Plain& plain, const Weight& weight, auto, Isa isa) {
        const int64_t cols = plain.shape.cols, last = plain.shape.outs - 1;
        const Guarded<int64_t> ids(std::vector<int64_t>{last, 0, last + 1, -1});
        const Guarded<float> out(4 * cols);
        run_kernel(&embedding,
                   EmbeddingArgs{weight, ids.data(), 4, out.data(), 2.0f, span_of(static_cast<int>(isa))});
        std::vector<float> wanted;
        for (int64_t i = 0; i < 2; ++i)
            for (int64_t c = 0; c < cols; ++c) wanted.push_back(2.0f * plain.value(ids[i], c));
        CHECK_CLOSE(out.data(), wanted.data(), 2 * cols, 1e-6f, 1e-6f);
        for (int64_t i = 2 * cols; i < 4 * cols; ++i) CHECK(std::isnan(out[i]));
    });
}
