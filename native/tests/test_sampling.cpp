#include "sampling/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/thread_pool.hpp"
#include "tests/check.hpp"

using namespace penstock;
using namespace penstock::test;

namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

struct Cut {
    float temperature, min_p;
    int64_t top_k;
    double top_p;
};

// The weights of the tokens that may be drawn, 0 elsewhere, by a sort.
std::vector<double> weights_of(const float* logits, int64_t vocab, const Cut& cut) {
    std::vector<double> weights(static_cast<size_t>(vocab));
    const float best = *std::max_element(logits, logits + vocab);
    const float shift = cut.temperature == 1.0f ? 0.0f : best;
    for (int64_t i = 0; i < vocab; ++i)
        weights[static_cast<size_t>(i)] =
            std::exp((static_cast<double>(logits[i]) - shift) / cut.temperature - (best - shift) / cut.temperature);
    const auto keep = [&](double threshold) {
        for (double& weight : weights)
            if (weight < threshold) weight = 0.0;
    };
    keep(cut.min_p);
    std::vector<double> sorted = weights;
    std::sort(sorted.rbegin(), sorted.rend());
    keep(sorted[static_cast<size_t>(std::min(cut.top_k, vocab) - 1)]);
    sorted = weights;
    std::sort(sorted.rbegin(), sorted.rend());
    const double mass = cut.top_p * std::accumulate(sorted.begin(), sorted.end(), 0.0);
    double total = 0.0;
    for (const double weight : sorted) {
        total += weight;
        if (total >= mass && cut.top_p < 1.0) {
            keep(weight);
            break;
        }
    }
    return weights;
}

}  // namespace

TEST(sampling_draws_where_the_cumulated_weights_pass_the_number) {
    const Cut cuts[] = {{1.0f, 0.0f, 1 << 30, 1.0}, {0.7f, 0.0f, 1 << 30, 0.9}, {1.3f, 0.0f, 5, 1.0},
                        {1.0f, 0.1f, 1 << 30, 1.0}, {0.8f, 0.01f, 40, 0.6},     {5.0f, 0.0f, 400, 0.999}};
    constexpr int64_t kRows = 24;
    for (const int64_t vocab : {1, 17, 64, 130, 1009}) {
        for (const Cut& cut : cuts) {
            const Context context("vocabulary " + std::to_string(vocab) + ", temperature " +
                                  std::to_string(cut.temperature) + ", top_k " + std::to_string(cut.top_k));
            const Guarded<float> logits(normal_values(kRows * vocab, 7, 3.0f));
            const Guarded<float> temperature(std::vector<float>(kRows, cut.temperature));
            const Guarded<float> min_p(std::vector<float>(kRows, cut.min_p));
            const Guarded<int64_t> top_k(std::vector<int64_t>(kRows, cut.top_k)), tokens(kRows);
            const Guarded<double> top_p(std::vector<double>(kRows, cut.top_p)), uniform(kRows);
            const Guarded<uint8_t> finite(kRows);
            const Guarded<char> workspace(sampling::workspace_bytes(vocab) * ThreadPool::instance().size());
            for (int64_t i = 0; i < kRows; ++i) uniform[i] = (static_cast<double>(i) + 0.37) / kRows;
            for_each_isa(sampling::kSample, [&](auto kernel) {
                run_kernel(kernel, sampling::SampleArgs{logits.data(), kRows, vocab, vocab, temperature.data(),
                                                        min_p.data(), top_k.data(), top_p.data(), uniform.data(),
                                                        tokens.data(), finite.data(), workspace.data()});
                for (int64_t i = 0; i < kRows; ++i) {
                    const std::vector<double> weights = weights_of(logits.data() + i * vocab, vocab, cut);
                    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
                    const int64_t token = tokens[i];
                    CHECK(token >= 0 && token < vocab && weights[static_cast<size_t>(token)] > 0.0);
                    const double before = std::accumulate(weights.begin(), weights.begin() + token, 0.0) / total;
                    const double after = before + weights[static_cast<size_t>(token)] / total;
                    CHECK(finite[i] == 1 && before - 1e-6 <= uniform[i] && uniform[i] <= after + 1e-6);
                }
            });
        }
    }
}

TEST(sampling_says_which_rows_it_cannot_draw_from) {
    constexpr int64_t kRows = 5, kVocab = 70;
    std::vector<float> values = normal_values(kRows * kVocab, 8);
    values[69] = std::nanf("");
    values[kVocab] = -kNever;
    std::fill(values.begin() + 2 * kVocab, values.begin() + 3 * kVocab, kNever);
    std::fill(values.begin() + 3 * kVocab, values.begin() + 4 * kVocab - 1, kNever);
    const Guarded<float> logits(values), temperature(std::vector<float>(kRows, 0.9f)), min_p(std::vector<float>(kRows, 0.0f));
    const Guarded<int64_t> top_k(std::vector<int64_t>(kRows, kVocab)), tokens(kRows);
    const Guarded<double> top_p(std::vector<double>(kRows, 1.0)), uniform(std::vector<double>(kRows, 0.5));
    const Guarded<uint8_t> finite(kRows);
    const Guarded<char> workspace(sampling::workspace_bytes(kVocab) * ThreadPool::instance().size());
    for_each_isa(sampling::kSample, [&](auto kernel) {
        run_kernel(kernel, sampling::SampleArgs{logits.data(), kRows, kVocab, kVocab, temperature.data(), min_p.data(),
                                                top_k.data(), top_p.data(), uniform.data(), tokens.data(), finite.data(),
                                                workspace.data()});
        CHECK(tokens[0] == -1 && tokens[1] == -1 && tokens[2] == -1 && tokens[3] == kVocab - 1 && tokens[4] >= 0);
        CHECK(!finite[0] && !finite[1] && !finite[2] && !finite[3] && finite[4]);
    });
}
