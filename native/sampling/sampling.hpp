// Sampling from logits without sorting the vocabulary: temperature, min_p, top_k, top_p and the draw, row by row.
#pragma once

#include <cstdint>

#include "runtime/isa.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock::sampling {

// Row i of the logits is logits + i * stride; minus infinity forbids a token. Every cut keeps tokens by a threshold on
// their value, ties included, and sees the distribution that the one before it left, renormalised.
struct SampleArgs {
    const float* logits;
    int64_t rows, vocab, stride;
    const float* temperature;  // positive; 1 leaves the logits as they are
    const float* min_p;        // 0: no cut
    const int64_t* top_k;      // vocab or more: no cut
    const double* top_p;       // 1 or more: no cut
    const double* uniform;     // in [0, 1)
    int64_t* tokens;           // -1 where a logit is NaN or infinite, or all are minus infinity
    uint8_t* finite;           // whether all logits of the row are finite
    char* workspace;           // workspace_bytes(vocab) for each thread
};

// Per thread. Lists of candidates have room for a vector more than they can hold.
constexpr int64_t kPiece = 64;  // tokens whose maximum and sum are kept
constexpr int64_t pieces_of(int64_t vocab) { return (vocab + kPiece - 1) / kPiece; }
constexpr int64_t list_length(int64_t vocab) { return (vocab + 15) / 16 * 16 + 16; }
constexpr int64_t workspace_bytes(int64_t vocab) {
    return 5 * 4 * list_length(vocab) + (4 + 8) * list_length(pieces_of(vocab));
}

PENSTOCK_DECLARE_PER_ISA(void sample(const SampleArgs&, Share))

inline const PerIsa<void (*)(const SampleArgs&, Share)> kSample = PENSTOCK_PER_ISA(sample);

}  // namespace penstock::sampling
