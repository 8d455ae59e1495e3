#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "attention/attention.hpp"
#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::attention;
using namespace penstock::test;

namespace {

struct Shape {
    int64_t heads, kv_heads, head_dim, block_tokens, window;
    float soft_cap;
    bool sinks;
};

constexpr float kScale = 0.2f;

// Inputs of one row of `length` tokens, and what attention gives for them. They depend on the shape alone: the same serve
// all types of the cache and all instruction sets.
struct Inputs {
    Shape shape;
    int64_t length;
    std::vector<float> qk, v, cosines, sines, sinks;

    Inputs(const Shape& s, int64_t n)
        : shape(s), length(n), qk(normal_values(n * (s.heads + s.kv_heads) * s.head_dim, 1)),
          v(normal_values(n * s.kv_heads * s.head_dim, 2)), sinks(normal_values(s.heads, 3)) {
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = 0; j < s.head_dim; ++j) {
                const double angle = static_cast<double>(i) / static_cast<double>(1 + j % (s.head_dim / 2));
                cosines.push_back(static_cast<float>(std::cos(angle)));
                sines.push_back(static_cast<float>(j < s.head_dim / 2 ? -std::sin(angle) : std::sin(angle)));
            }
        }
    }

    // All heads of all tokens after rotation: queries first, then keys.
    std::vector<double> rotated() const {
        const int64_t dim = shape.head_dim, heads = shape.heads + shape.kv_heads;
        std::vector<double> found(qk.size());
        for (int64_t t = 0; t < length; ++t) {
            for (int64_t h = 0; h < heads; ++h) {
                const int64_t begin = (t * heads + h) * dim;
                for (int64_t j = 0; j < dim; ++j) {
                    const size_t angle = static_cast<size_t>(t * dim + j);
                    const double x = qk[static_cast<size_t>(begin + j)];
                    const double other = qk[static_cast<size_t>(begin + (j + dim / 2) % dim)];
                    found[static_cast<size_t>(begin + j)] = x * cosines[angle] + other * sines[angle];
                }
            }
        }
        return found;
    }

    std::vector<float> expected() const {
        const int64_t dim = shape.head_dim, group = shape.heads / shape.kv_heads, heads = shape.heads + shape.kv_heads;
        const std::vector<double> turned = rotated();
        std::vector<float> wanted;
        for (int64_t t = 0; t < length; ++t) {
            for (int64_t h = 0; h < shape.heads; ++h) {
                const int64_t low = shape.window > 0 ? std::max<int64_t>(0, t + 1 - shape.window) : 0;
                const double* query = turned.data() + (t * heads + h) * dim;
                std::vector<double> sums(static_cast<size_t>(dim));
                double total = shape.sinks ? std::exp(static_cast<double>(sinks[static_cast<size_t>(h)])) : 0.0;
                for (int64_t s = low; s <= t; ++s) {
                    const double* key = turned.data() + (s * heads + shape.heads + h / group) * dim;
                    double score = 0;
                    for (int64_t j = 0; j < dim; ++j) score += query[j] * key[j];
                    score *= kScale;
                    if (shape.soft_cap > 0) score = shape.soft_cap * std::tanh(score / shape.soft_cap);
                    const double weight = std::exp(score);
                    total += weight;
                    const float* value = v.data() + (s * shape.kv_heads + h / group) * dim;
                    for (int64_t j = 0; j < dim; ++j) sums[static_cast<size_t>(j)] += weight * value[j];
                }
                for (const double sum : sums) wanted.push_back(static_cast<float>(sum / total));
            }
        }
        return wanted;
    }
};

// One row over shuffled blocks of a pool that is NaN where nothing was written.
struct Row {
    const Inputs& inputs;
    KvType type;
    std::vector<int64_t> table;
    Guarded<unsigned char> memory;
    KvPool pool;

    Row(const Inputs& in, KvType t)
        : inputs(in), type(t), table(static_cast<size_t>(blocks())),
          memory(std::vector<unsigned char>(static_cast<size_t>(blocks() * block_bytes()), 0xff)),
          pool{reinterpret_cast<char*>(memory.data()), block_bytes(), in.shape.block_tokens, in.shape.kv_heads,
               in.shape.head_dim} {
        for (int64_t i = 0; i < blocks(); ++i) table[static_cast<size_t>(i)] = blocks() - 1 - i;
    }

    int64_t blocks() const { return (inputs.length + inputs.shape.block_tokens - 1) / inputs.shape.block_tokens; }
    int64_t block_bytes() const {
        const Shape& shape = inputs.shape;
        return shape.kv_heads * (shape.block_tokens / kTile) * tile_bytes(type, shape.head_dim);
    }

    // Computes the tokens [begin, end), everything before being in the pool.
    void compute(Write write, Attend attend, int64_t begin, int64_t end, bool split, float* out) const {
        const Shape& shape = inputs.shape;
        const int64_t tokens = end - begin, width = (shape.heads + shape.kv_heads) * shape.head_dim;
        const int64_t chunks = (inputs.length + kChunk - 1) / kChunk, jobs = tokens * shape.kv_heads;
        const Guarded<float> q(tokens * shape.heads * shape.head_dim);
        const Guarded<float> parts(
            split ? jobs * chunks * (shape.heads / shape.kv_heads) * (padded(shape.head_dim) + 16) : 1);
        const Guarded<int32_t> arrived(jobs);
        std::vector<int64_t> slots;
        for (int64_t i = begin; i < end; ++i)
            slots.push_back(table[static_cast<size_t>(i / shape.block_tokens)] * shape.block_tokens +
                            i % shape.block_tokens);
        const int64_t starts[] = {0, tokens}, lens[] = {end};
        run_kernel(write, WriteArgs{inputs.qk.data() + begin * width, width, shape.head_dim,
                                    inputs.v.data() + begin * shape.kv_heads * shape.head_dim,
                                    shape.kv_heads * shape.head_dim, shape.head_dim,
                                    inputs.cosines.data() + begin * shape.head_dim,
                                    inputs.sines.data() + begin * shape.head_dim, tokens, shape.heads, kScale,
                                    slots.data(), pool, q.data(), split ? arrived.data() : nullptr});
        run_kernel(attend, AttendArgs{q.data(), pool, starts, lens, table.data(), blocks(), 1, tokens, shape.heads,
                                      shape.window, shape.soft_cap, shape.sinks ? inputs.sinks.data() : nullptr, out,
                                      split ? parts.data() : nullptr, split ? arrived.data() : nullptr, chunks});
    }
};

const Shape kShapes[] = {{9, 3, 64, 16, 0, 0.0f, false}, {7, 1, 24, 32, 0, 0.0f, false},
                         {4, 2, 16, 16, 70, 0.0f, false}, {2, 2, 8, 64, 0, 5.0f, false},
                         {2, 1, 128, 16, 5, 0.0f, false}, {14, 2, 80, 16, 0, 0.0f, false},
                         {8, 2, 64, 16, 0, 0.0f, true},   {6, 3, 24, 16, 70, 5.0f, true}};
constexpr int64_t kLength = 150;

std::string words(const Shape& s, KvType type) {
    return std::to_string(s.heads) + " heads, " + std::to_string(s.kv_heads) + " of keys, of " +
           std::to_string(s.head_dim) + ", window " + std::to_string(s.window) + ", sinks " +
           std::to_string(s.sinks) + ", type " + std::to_string(static_cast<int>(type));
}

// Calls use(inputs, expected values, type, write, attend) for every shape, type of the cache and instruction set.
template <class Use>
void for_each_case(Use use) {
    for (const Shape& shape : kShapes) {
        const Inputs inputs(shape, kLength);
        const std::vector<float> expected = inputs.expected();
        for (const KvType type : {KvType::float32, KvType::bfloat16, KvType::int8}) {
            const Context context(words(shape, type));
            for (int isa = 0; isa < kNumIsas; ++isa) {
                const Write write = kWrite[static_cast<int>(type)].find(isa);
                if (write == nullptr || !can_run(static_cast<Isa>(isa))) continue;
                const Context set(kIsaNames[isa]);
                use(inputs, expected, type, write, kAttend[static_cast<int>(type)][isa]);
            }
        }
    }
}

}  // namespace

// The whole prompt at once gives what plain code gives; in any chunks, and split, it gives the same bits again.
TEST(attention_of_a_prompt_in_any_chunks) {
    for_each_case([](const Inputs& inputs, const std::vector<float>& expected, KvType type, Write write,
                     Attend attend) {
        const int64_t width = inputs.shape.heads * inputs.shape.head_dim;
        const Row whole(inputs, type), parts(inputs, type);
        const Guarded<float> wanted(kLength * width), found(kLength * width);
        whole.compute(write, attend, 0, kLength, false, wanted.data());
        const float tolerance = type == KvType::float32 ? 4e-6f : type == KvType::bfloat16 ? 2e-2f : 8e-2f;
        CHECK_CLOSE(wanted.data(), expected.data(), wanted.size(), tolerance, tolerance);
        const int64_t ends[] = {1, 2, 19, 63, 64, 65, 66, 99, 130, 131, kLength};
        int64_t begin = 0;
        for (const int64_t end : ends) {
            parts.compute(write, attend, begin, end, end - begin < 4, found.data() + begin * width);
            begin = end;
        }
        CHECK(std::memcmp(found.data(), wanted.data(), static_cast<size_t>(found.size()) * sizeof(float)) == 0);
    });
}

TEST(attention_of_no_rows) {
    for (const PerIsa<Attend>& table : kAttend) {
        for_each_isa(table, [](Attend attend) {
            const int64_t starts[] = {0, 0}, lens[] = {7}, blocks[] = {0};
            AttendArgs args{};
            args.pool = {nullptr, 0, 16, 1, 16};
            args.query_start = starts;
            args.kv_lens = lens;
            args.block_table = blocks;
            args.heads = 1;
            run_kernel(attend, args);
            args.rows = 1;
            run_kernel(attend, args);
        });
    }
}
