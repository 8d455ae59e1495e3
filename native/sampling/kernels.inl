// Compiled once per instruction set: the including file defines PENSTOCK_ISA.
#include <cmath>

#include "sampling/sampling.hpp"
#include "sampling/select.hpp"
#include "simd/vec.hpp"

namespace penstock::sampling {
namespace {

constexpr float kLargest = 0x1.fffffep127f;
constexpr float kNever = -__builtin_inff();

// A thread's memory: the tokens that are still candidates with their values and weights, scratch for selections, and a
// maximum and a sum for each piece of the vocabulary.
struct Workspace {
    int32_t* ids;
    float *values, *weights;
    int32_t* keys;
    float* spare_weights;
    float* maxima;
    double* sums;

    Workspace(const SampleArgs& args, int thread) {
        char* place = args.workspace + thread * workspace_bytes(args.vocab);
        const int64_t length = list_length(args.vocab), pieces = list_length(pieces_of(args.vocab));
        const auto next = [&](int64_t bytes) {
            char* const here = place;
            place += bytes;
            return here;
        };
        ids = reinterpret_cast<int32_t*>(next(4 * length));
        values = reinterpret_cast<float*>(next(4 * length));
        weights = reinterpret_cast<float*>(next(4 * length));
        keys = reinterpret_cast<int32_t*>(next(4 * length));
        spare_weights = reinterpret_cast<float*>(next(4 * length));
        maxima = reinterpret_cast<float*>(next(4 * pieces));
        sums = reinterpret_cast<double*>(next(8 * pieces));
    }
};

// The logits of one row after the temperature. Rounded as the division of a shifted row by a scalar is, so that a
// threshold separates the same tokens here and there.
struct Row {
    const float* x;
    int64_t vocab;
    float shift, temperature;
    float best;  // the largest value after the temperature

    PENSTOCK_INLINE f32x16 warm(f32x16 logits) const {
        return (logits - shift) / temperature + 0.0f;  // minus zero becomes zero: their bits are compared
    }
    PENSTOCK_INLINE float warm(float logit) const { return (logit - shift) / temperature + 0.0f; }

    // Sixteen logits; `fill` behind the last.
    PENSTOCK_INLINE f32x16 logits(int64_t at, float fill) const {
        if (__builtin_expect(at + 16 <= vocab, 1)) return load16(x + at);
        float lanes[16];
        for (int64_t i = 0; i < 16; ++i) lanes[i] = at + i < vocab ? x[at + i] : fill;
        return load16(lanes);
    }
    PENSTOCK_INLINE f32x16 values(int64_t at) const { return warm(logits(at, kNever)); }
    PENSTOCK_INLINE f32x16 weights(int64_t at) const { return exp16(values(at) - best); }
};

// Writes the maximum of every piece. False where no token can be drawn: a NaN, plus infinity, or nothing but minus
// infinity.
PENSTOCK_INLINE bool find_maxima(Row& row, float* maxima, float& best, bool& finite) {
    const float last = row.x[row.vocab - 1];
    i32x16 sound = ~i32x16{}, all_finite = ~i32x16{};
    best = kNever;
    for (int64_t p = 0; p < pieces_of(row.vocab); ++p) {
        f32x16 most = splat(kNever);
        for (int64_t k = 0; k < kPiece; k += 16) {
            const f32x16 value = row.logits(p * kPiece + k, last);
            sound = sound & (value <= kLargest);
            all_finite = all_finite & (abs16(value) <= kLargest);
            most = max16(most, value);
        }
        maxima[p] = max_lanes(most);
        best = maxima[p] > best ? maxima[p] : best;
    }
    finite = !any_lane(~all_finite);
    return !any_lane(~sound) && best > kNever;
}

PENSTOCK_INLINE double total_of(const double* sums, int64_t pieces) {
    double total = 0.0;
    for (int64_t p = 0; p < pieces; ++p) total += sums[p];
    return total;
}

// The first piece whose cumulated sum exceeds the target, and what the pieces before it have. Never a piece without mass:
// rounding may lift the target to the total, behind which there is nothing.
PENSTOCK_INLINE int64_t find_piece(const double* sums, int64_t pieces, double target, double& before) {
    double cumulated = 0.0;
    int64_t found = 0;
    for (int64_t p = 0; p < pieces; ++p) {
        if (sums[p] > 0.0) {
            found = p;
            before = cumulated;
        }
        cumulated += sums[p];
        if (cumulated > target) break;
    }
    return found;
}

// The same among the weights of one piece.
PENSTOCK_INLINE int64_t find_place(const float* weights, int64_t count, double target, double before) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (weights[i] > 0.0f) found = i;
        before += weights[i];
        if (before > target) break;
    }
    return found;
}

PENSTOCK_INLINE double sum_pieces(const Row& row, double* sums) {
    const int64_t pieces = pieces_of(row.vocab);
    for (int64_t p = 0; p < pieces; ++p) {
        DoubleSum sum;
        for (int64_t k = 0; k < kPiece; k += 16) sum.add(row.weights(p * kPiece + k));
        sums[p] = sum.total();
    }
    return total_of(sums, pieces);
}

PENSTOCK_INLINE int64_t draw_from_row(const Row& row, double uniform, double* sums) {
    const double target = uniform * sum_pieces(row, sums);
    double before = 0.0;
    const int64_t piece = find_piece(sums, pieces_of(row.vocab), target, before);
    float weights[kPiece];
    for (int64_t k = 0; k < kPiece; k += 16) store16(weights + k, row.weights(piece * kPiece + k));
    return piece * kPiece + find_place(weights, kPiece, target, before);
}

// The candidates: tokens with a value of at least `floor`, in order. Answers how many.
PENSTOCK_INLINE int64_t collect(const Row& row, float floor, const Workspace& work) {
    int64_t count = 0;
    for (int64_t p = 0; p < pieces_of(row.vocab); ++p) {
        if (row.warm(work.maxima[p]) < floor) continue;
        const int64_t base = p * kPiece, in_piece = row.vocab - base < kPiece ? row.vocab - base : kPiece;
        float values[kPiece];
        for (int64_t k = 0; k < kPiece; k += 16) store16(values + k, row.values(base + k));
        for (int64_t i = 0; i < in_piece; ++i) {
            work.ids[count] = static_cast<int32_t>(base + i);
            work.values[count] = values[i];
            count += values[i] >= floor;
        }
    }
    return count;
}

PENSTOCK_INLINE void weigh(const Row& row, const Workspace& work, int64_t count) {
    for (int64_t i = 0; i < count; i += 16)
        store16(work.weights + i, exp16(load16(work.values + i) - row.best));
    store16(work.weights + count, f32x16{});  // sums are taken in whole vectors
}

// Keeps the candidates at or above the key.
PENSTOCK_INLINE int64_t keep(const Workspace& work, int64_t count, int32_t key) {
    const float threshold = value_of(key);
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float value = work.values[i];
        work.ids[kept] = work.ids[i];
        work.values[kept] = value;
        work.weights[kept] = work.weights[i];
        kept += value >= threshold;
    }
    store16(work.weights + kept, f32x16{});
    return kept;
}

PENSTOCK_INLINE double sum_candidates(const Workspace& work, int64_t count) {
    const int64_t pieces = pieces_of(count);
    for (int64_t p = 0; p < pieces; ++p) {
        DoubleSum sum;
        for (int64_t i = p * kPiece; i < count && i < (p + 1) * kPiece; i += 16) sum.add(load16(work.weights + i));
        work.sums[p] = sum.total();
    }
    return total_of(work.sums, pieces);
}

PENSTOCK_INLINE int64_t cut_top_k(const Workspace& work, int64_t count, int64_t top_k) {
    if (count <= top_k) return count;
    for (int64_t i = 0; i < count; ++i) work.keys[i] = key_of(work.values[i]);
    return keep(work, count, select_key<false>(work.keys, nullptr, count, static_cast<double>(top_k)));
}

PENSTOCK_INLINE int64_t cut_top_p(const Workspace& work, int64_t count, double mass) {
    for (int64_t i = 0; i < count; ++i) work.keys[i] = key_of(work.values[i]);
    std::memcpy(work.spare_weights, work.weights, static_cast<size_t>(count) * sizeof(float));
    return keep(work, count, select_key<true>(work.keys, work.spare_weights, count, mass));
}

// A value that no cut's threshold is below, so that fewer tokens need to be looked at. `total` is the weight of the row
// when top_p is the only cut.
PENSTOCK_INLINE float lower_bound(const SampleArgs& args, int64_t i, const Row& row, const Workspace& work,
                                  double total) {
    float floor = args.min_p[i] > 0.0f ? row.best + std::log(args.min_p[i]) : kNever;
    const int64_t pieces = pieces_of(row.vocab);
    if (args.top_k[i] <= pieces) {  // as many pieces have a token above the top_k-th largest maximum
        for (int64_t p = 0; p < pieces; ++p) work.keys[p] = key_of(row.warm(work.maxima[p]));
        const float bound = value_of(select_key<false>(work.keys, nullptr, pieces, static_cast<double>(args.top_k[i])));
        floor = bound > floor ? bound : floor;
    }
    if (total > 0.0) {  // all tokens below weigh less than half of what may be left out; the margin is for rounding
        const double least = (1.0 - args.top_p[i]) * total / (2.0 * static_cast<double>(row.vocab));
        floor = row.best + static_cast<float>(std::log(least)) - 1e-3f;
    }
    return floor;
}

PENSTOCK_INLINE int64_t draw_from_cuts(const SampleArgs& args, int64_t i, const Row& row, const Workspace& work) {
    const bool only_top_p = args.top_k[i] >= row.vocab && !(args.min_p[i] > 0.0f);
    double total = only_top_p ? sum_pieces(row, work.sums) : 0.0;
    int64_t count = collect(row, lower_bound(args, i, row, work, total), work);
    weigh(row, work, count);
    if (args.top_k[i] < row.vocab) count = cut_top_k(work, count, args.top_k[i]);
    if (args.top_p[i] < 1.0) {
        if (!only_top_p) total = sum_candidates(work, count);
        count = cut_top_p(work, count, args.top_p[i] * total);
    }
    const double target = args.uniform[i] * sum_candidates(work, count);
    double before = 0.0;
    const int64_t first = find_piece(work.sums, pieces_of(count), target, before) * kPiece;
    const int64_t in_piece = count - first < kPiece ? count - first : kPiece;
    return work.ids[first + find_place(work.weights + first, in_piece, target, before)];
}

PENSTOCK_INLINE void sample_row(const SampleArgs& args, int64_t i, const Workspace& work) {
    Row row{args.logits + i * args.stride, args.vocab, 0.0f, args.temperature[i], 0.0f};
    float best;
    bool finite;
    if (!find_maxima(row, work.maxima, best, finite)) {
        args.tokens[i] = -1;
        args.finite[i] = finite;
        return;
    }
    row.shift = row.temperature == 1.0f ? 0.0f : best;
    row.best = row.warm(best);
    const bool cuts = args.min_p[i] > 0.0f || args.top_k[i] < row.vocab || args.top_p[i] < 1.0;
    args.tokens[i] = cuts ? draw_from_cuts(args, i, row, work) : draw_from_row(row, args.uniform[i], work.sums);
    args.finite[i] = finite;
}

}  // namespace

namespace PENSTOCK_ISA {

void sample(const SampleArgs& args, Share share) {
    const Workspace work(args, share.index);
    int64_t begin, end;
    while (share.take(1, args.rows, begin, end)) sample_row(args, begin, work);
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock::sampling
