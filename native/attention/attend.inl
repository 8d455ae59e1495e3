// Compiled once per instruction set: the including file defines PENSTOCK_ISA.
//
// Attention over tiles. A pair is one query with one of the heads that share a KV head; pairs are computed in blocks of
// up to kPairs, whose accumulators fill the registers. What a pair gets does not depend on its block: every score is one
// chain of additions over the head's elements, every element of a result one chain over the chunk's tokens, and tokens
// that a pair does not see are not in it.
#include "attention/attention.hpp"
#include "simd/vec.hpp"

namespace penstock::attention {
namespace {

#if defined(__AVX512F__)
constexpr int kPairs = 6, kTilesAtOnce = 4, kVectors = 4;
#elif defined(__AVX__)
constexpr int kPairs = 6, kTilesAtOnce = 1, kVectors = 1;
#elif defined(__aarch64__)
constexpr int kPairs = 6, kTilesAtOnce = 1, kVectors = 1;
#else
constexpr int kPairs = 2, kTilesAtOnce = 1, kVectors = 1;
#endif

constexpr int64_t kChunkTiles = kChunk / kTile;
// With more pairs than this, keys and values are converted to float32 once for all of them.
constexpr int64_t kDirectPairs = 2 * kPairs;
// About as many pairs share one conversion, when there is work enough for all threads.
constexpr int64_t kJobPairs = 96;
constexpr int64_t kJobsPerThread = 4;
// Behind the padded head in a record: the sum of the weights, the largest score, padding.
constexpr int64_t kRecordTail = 16;

constexpr float kMinusInfinity = -__builtin_inff();

// ---- Chunks ---------------------------------------------------------------------------------------------------------

PENSTOCK_INLINE f32x16 widen(const float* from) { return load16(from); }
PENSTOCK_INLINE f32x16 widen(const uint16_t* from) { return widen_bf16(from); }
PENSTOCK_INLINE f32x16 widen(const int8_t* from) { return widen_i8(from); }

// The chunk's tiles as the pairs of a job see them. Tiles before the first and behind the last visible token are null.
template <class Stored>
struct ChunkTiles {
    const Stored* keys[kChunkTiles];
    const Stored* values[kChunkTiles];
    const float* scales[kChunkTiles];  // of codes: 16 of the keys, 16 of the values
    const Stored* next[kChunkTiles];   // what will be read soon; these tiles themselves where nothing is known
    int64_t head_dim;
};

// A pair within a chunk: it sees the tokens [low, high) of it, maybe none. The record gets what they give: the weighted
// values, then the sum of the weights and the largest score.
struct Pair {
    const float* q;
    int64_t low, high;
    float* record;
};

// Scores of P pairs with the tokens of T tiles from the first one on.
template <int P, int T, class Stored>
PENSTOCK_INLINE void score_tiles(const Pair* pairs, const ChunkTiles<Stored>& tiles, int64_t first, float (*scores)[kChunk]) {
    f32x16 sums[P][T];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sums[p][t] = splat(0.0f);
    for (int64_t i = 0; i < tiles.head_dim; ++i) {
        f32x16 key[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            key[t] = widen(tiles.keys[first + t] + i * kTile);
            // An element of the keys and one of the values of 16 tokens: a line of 64 bytes when they have 16 bits.
            if constexpr (sizeof(Stored) < sizeof(float)) __builtin_prefetch(tiles.next[first + t] + i * 2 * kTile);
        }
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const f32x16 q = splat(pairs[p].q[i]);
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) sums[p][t] = fma16(q, key[t], sums[p][t]);
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) store16(scores[p] + (first + t) * kTile, sums[p][t]);
}

// tanh(x) = 1 - 2 / (exp(2x) + 1): where x is small its absolute error, some 1e-7, is what counts for a score.
PENSTOCK_INLINE f32x16 soft_capped(f32x16 score, float cap) {
    const f32x16 power = exp16(score * (2.0f / cap));
    return cap - (2.0f * cap) / (power + 1.0f);
}

// Turns the scores of the tiles [first, last) into weights, those of tokens that the pair does not see into 0, and
// notes their sum and the largest score. Weights of codes are multiplied with the scale of the values behind the sum.
template <class Stored>
PENSTOCK_INLINE void weigh(const Pair& pair, const ChunkTiles<Stored>& tiles, int64_t first, int64_t last, float soft_cap,
                           float* scores) {
    f32x16 largest = splat(kMinusInfinity);
    for (int64_t t = first; t < last; ++t) {
        f32x16 score = load16(scores + t * kTile);
        if (tiles.scales[t] != nullptr) score *= load16(tiles.scales[t]);
        if (soft_cap > 0.0f) score = soft_capped(score, soft_cap);
        const int64_t low = pair.low - t * kTile, high = pair.high - t * kTile;
        if (low > 0 || high < kTile) {
            const i32x16 lane = lane_numbers();
            const i32x16 seen = (lane >= static_cast<int32_t>(low)) & (lane < static_cast<int32_t>(high));
            score = select16(seen, score, splat(kMinusInfinity));
        }
        largest = max16(largest, score);
        store16(scores + t * kTile, score);
    }
    const float most = max_lanes(largest);
    f32x16 sum = splat(0.0f);
    for (int64_t t = first; t < last; ++t) {
        f32x16 weight = exp16(load16(scores + t * kTile) - splat(most));
        sum += weight;
        if (tiles.scales[t] != nullptr) weight *= load16(tiles.scales[t] + kTile);
        store16(scores + t * kTile, weight);
    }
    float* tail = pair.record + padded(tiles.head_dim);
    tail[0] = sum_lanes(sum);
    tail[1] = most;
}

// Adds the values of the tokens [low, high), weighted, to V vectors of the records of P pairs.
template <int P, int V, class Stored>
PENSTOCK_INLINE void add_vectors(const Pair* pairs, const ChunkTiles<Stored>& tiles, int64_t low, int64_t high,
                                 int64_t element, const float (*weights)[kChunk]) {
    const int64_t row = padded(tiles.head_dim);
    f32x16 sums[P][V];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[p][v] = load16(pairs[p].record + element + 16 * v);
    while (low < high) {
        const Stored* values = tiles.values[low / kTile] + element;
        const int64_t end = (low / kTile + 1) * kTile < high ? (low / kTile + 1) * kTile : high;
        for (; low < end; ++low) {
            f32x16 value[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) value[v] = widen(values + low % kTile * row + 16 * v);
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) {
                const f32x16 weight = splat(weights[p][low]);
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) sums[p][v] = fma16(weight, value[v], sums[p][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store16(pairs[p].record + element + 16 * v, sums[p][v]);
}

template <int P, class Stored>
PENSTOCK_INLINE void add_values(const Pair* pairs, const ChunkTiles<Stored>& tiles, int64_t low, int64_t high,
                                const float (*weights)[kChunk]) {
    if (low >= high) return;
    int64_t element = 0;
    for (; element + 16 * kVectors <= padded(tiles.head_dim); element += 16 * kVectors)
        add_vectors<P, kVectors>(pairs, tiles, low, high, element, weights);
    for (; element < padded(tiles.head_dim); element += 16)
        add_vectors<P, 1>(pairs, tiles, low, high, element, weights);
}

// One block of P pairs with a chunk.
template <int P, class Stored>
void attend_block(const Pair* pairs, const ChunkTiles<Stored>& tiles, float soft_cap) {
    int64_t low = kChunk, high = 0;                // seen by one of them
    int64_t common_low = 0, common_high = kChunk;  // seen by all
    for (int p = 0; p < P; ++p) {
        if (pairs[p].low < low) low = pairs[p].low;
        if (pairs[p].high > high) high = pairs[p].high;
        if (pairs[p].low > common_low) common_low = pairs[p].low;
        if (pairs[p].high < common_high) common_high = pairs[p].high;
    }
    if (low >= high) return;
    alignas(64) float scores[P][kChunk];
    const int64_t first = low / kTile, last = (high + kTile - 1) / kTile;
    int64_t tile = first;
    for (; tile + kTilesAtOnce <= last; tile += kTilesAtOnce) score_tiles<P, kTilesAtOnce>(pairs, tiles, tile, scores);
    if constexpr (kTilesAtOnce > 2)
        for (; tile + 2 <= last; tile += 2) score_tiles<P, 2>(pairs, tiles, tile, scores);
    for (; tile < last; ++tile) score_tiles<P, 1>(pairs, tiles, tile, scores);
    for (int p = 0; p < P; ++p) {
        if (pairs[p].low >= pairs[p].high) continue;
        weigh(pairs[p], tiles, first, last, soft_cap, scores[p]);
        for (int64_t i = 0; i < padded(tiles.head_dim); i += 16) store16(pairs[p].record + i, splat(0.0f));
    }
    if (common_low >= common_high) {
        for (int p = 0; p < P; ++p) add_values<1>(pairs + p, tiles, pairs[p].low, pairs[p].high, scores + p);
        return;
    }
    for (int p = 0; p < P; ++p) add_values<1>(pairs + p, tiles, pairs[p].low, common_low, scores + p);
    add_values<P>(pairs, tiles, common_low, common_high, scores);
    for (int p = 0; p < P; ++p) add_values<1>(pairs + p, tiles, common_high, pairs[p].high, scores + p);
}

template <class Stored>
PENSTOCK_INLINE void attend_pairs(const Pair* pairs, int64_t count, const ChunkTiles<Stored>& tiles, float soft_cap) {
    if (count == 1) attend_block<1>(pairs, tiles, soft_cap);
    if (count == 2) attend_block<2>(pairs, tiles, soft_cap);
    if constexpr (kPairs > 2) {
        if (count == 3) attend_block<3>(pairs, tiles, soft_cap);
        if (count == 4) attend_block<4>(pairs, tiles, soft_cap);
        if (count == 5) attend_block<5>(pairs, tiles, soft_cap);
        if (count == 6) attend_block<6>(pairs, tiles, soft_cap);
    }
}

// ---- Records --------------------------------------------------------------------------------------------------------

// Adds what a later chunk gave to what the chunks before it gave.
PENSTOCK_INLINE void merge(float* record, const float* later, int64_t width) {
    const float before = record[width + 1], after = later[width + 1];
    const float most = before > after ? before : after;
    float lanes[16] = {before - most, after - most};
    store16(lanes, exp16(load16(lanes)));
    const f32x16 keep = splat(lanes[0]), add = splat(lanes[1]);
    for (int64_t i = 0; i < width + kRecordTail; i += 16)
        store16(record + i, fma16(load16(record + i), keep, load16(later + i) * add));
    record[width + 1] = most;
}

PENSTOCK_INLINE void copy_record(float* to, const float* from, int64_t width) {
    for (int64_t i = 0; i < width + kRecordTail; i += 16) store16(to + i, load16(from + i));
}

// ---- Jobs -----------------------------------------------------------------------------------------------------------

// Consecutive queries of a row with one KV head.
struct Job {
    int64_t row, first, count, kv_head;  // first is a token of the batch
    int64_t position;                    // of the first query

    int64_t low(const AttendArgs& args, int64_t query) const {  // first position that a query sees
        const int64_t end = position + query + 1;
        return args.window > 0 && end > args.window ? end - args.window : 0;
    }
    int64_t first_chunk(const AttendArgs& args) const { return low(args, 0) / kChunk; }
    int64_t end_chunk() const { return (position + count + kChunk - 1) / kChunk; }
};

// All jobs of a call, costly rows first and late queries of a row first, so that the last jobs are small.
class Jobs {
  public:
    Jobs(const AttendArgs& args, int64_t queries_per_job) : args_(args), queries_(queries_per_job) {
        for (int64_t row = 0; row < args.rows; ++row) {
            total_ += jobs_of(row) * args.pool.kv_heads;
            classes_ |= uint64_t{1} << cost_class(row);
        }
        cost_ = classes_ == 0 ? 0 : 63 - __builtin_clzll(classes_);
        row_ = -1;
    }

    int64_t total() const { return total_; }

    // The next job; not more than total() times.
    PENSTOCK_INLINE Job next() {
        if (++kv_head_ == args_.pool.kv_heads) {
            kv_head_ = 0;
            --job_;
        }
        while (job_ < 0) {
            if (++row_ == args_.rows) {
                row_ = 0;
                do --cost_;
                while (!(classes_ >> cost_ & 1));
            }
            job_ = cost_class(row_) == cost_ ? jobs_of(row_) - 1 : -1;
            kv_head_ = 0;
        }
        const int64_t begin = args_.query_start[row_], count = args_.query_start[row_ + 1] - begin;
        const int64_t skipped = job_ * queries_;
        return {row_, begin + skipped, queries_ < count - skipped ? queries_ : count - skipped, kv_head_,
                args_.kv_lens[row_] - count + skipped};
    }

  private:
    int64_t jobs_of(int64_t row) const {
        return (args_.query_start[row + 1] - args_.query_start[row] + queries_ - 1) / queries_;
    }

    int cost_class(int64_t row) const {
        const int64_t count = args_.query_start[row + 1] - args_.query_start[row];
        const int64_t queries = count < queries_ ? count : queries_;
        const int64_t length = args_.kv_lens[row], reach = args_.window + queries;
        const int64_t seen = args_.window > 0 && reach < length ? reach : length;
        return 63 - __builtin_clzll(static_cast<uint64_t>(queries * seen) | 1);
    }

    const AttendArgs& args_;
    const int64_t queries_;
    int64_t total_ = 0;
    uint64_t classes_ = 0;
    int cost_ = 0;
    int64_t row_, job_ = -1, kv_head_ = -1;
};

// Memory of one thread: one job's records, and what a chunk is converted to.
struct Scratch {
    alignas(64) float keys[kChunk * kMaxHeadDim];
    alignas(64) float values[kChunk * kMaxHeadDim];
    alignas(64) float records[kJobPairs * (kMaxHeadDim + kRecordTail)];
    alignas(64) float later[kPairs * (kMaxHeadDim + kRecordTail)];
};

template <KvType type, class Stored>
PENSTOCK_INLINE ChunkTiles<Stored> find_tiles(const AttendArgs& args, const Job& job, int64_t chunk, int64_t first,
                                              int64_t last) {
    ChunkTiles<Stored> tiles{};
    tiles.head_dim = args.pool.head_dim;
    const int64_t* table = args.block_table + job.row * args.table_stride;
    for (int64_t t = first; t < last; ++t) {
        const int64_t position = chunk * kChunk + t * kTile;
        const int64_t block = table[position / args.pool.block_tokens];
        const char* tile = args.pool.tile(type, block, job.kv_head, position % args.pool.block_tokens);
        tiles.keys[t] = reinterpret_cast<const Stored*>(tile);
        tiles.values[t] = tiles.keys[t] + kTile * tiles.head_dim;
        tiles.next[t] = tiles.keys[t];
        if constexpr (type == KvType::int8)
            tiles.scales[t] = reinterpret_cast<const float*>(tiles.values[t] + kTile * padded(tiles.head_dim));
    }
    return tiles;
}

template <class Stored>
PENSTOCK_INLINE ChunkTiles<float> convert(const ChunkTiles<Stored>& tiles, Scratch& scratch) {
    ChunkTiles<float> converted{};
    converted.head_dim = tiles.head_dim;
    const int64_t num_keys = kTile * tiles.head_dim, num_values = kTile * padded(tiles.head_dim);
    for (int64_t t = 0; t < kChunkTiles; ++t) {
        if (tiles.keys[t] == nullptr) continue;
        float *keys = scratch.keys + t * num_keys, *values = scratch.values + t * num_values;
        for (int64_t i = 0; i < num_keys; i += 16) store16(keys + i, widen(tiles.keys[t] + i));
        for (int64_t i = 0; i < num_values; i += 16) store16(values + i, widen(tiles.values[t] + i));
        converted.keys[t] = keys;
        converted.values[t] = values;
        converted.scales[t] = tiles.scales[t];
    }
    return converted;
}

// One job with one chunk. What it gives to a pair goes to use(pair, record), pair being its number in the job.
template <KvType type, class Stored, class Use>
PENSTOCK_INLINE void attend_chunk(const AttendArgs& args, const Job& job, int64_t chunk, Scratch& scratch, Use use) {
    const int64_t dim = args.pool.head_dim, group = args.heads / args.pool.kv_heads, start = chunk * kChunk;
    const int64_t record = padded(dim) + kRecordTail, count = job.count * group;
    const auto within = [&](int64_t position) {
        return position <= start ? int64_t{0} : position - start < kChunk ? position - start : kChunk;
    };
    const int64_t low = within(job.low(args, 0)), high = within(job.position + job.count);
    ChunkTiles<Stored> stored = find_tiles<type, Stored>(args, job, chunk, low / kTile, (high + kTile - 1) / kTile);
    const bool direct = type == KvType::float32 || count <= kDirectPairs;
    ChunkTiles<float> converted;
    if (!direct) converted = convert(stored, scratch);
    if (direct && chunk + 1 < job.end_chunk()) {
        const int64_t left = job.position + job.count - start - kChunk;
        const int64_t tiles = left < kChunk ? (left + kTile - 1) / kTile : kChunkTiles;
        const ChunkTiles<Stored> next = find_tiles<type, Stored>(args, job, chunk + 1, 0, tiles);
        for (int64_t t = low / kTile; t < tiles; ++t) stored.next[t] = next.keys[t];
    }
    const int64_t blocks = (count + kPairs - 1) / kPairs;
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t begin = b * count / blocks, size = (b + 1) * count / blocks - begin;
        Pair pairs[kPairs];
        for (int64_t p = 0; p < size; ++p) {
            const int64_t query = (begin + p) / group, head = (begin + p) % group;
            const int64_t number = (job.first + query) * args.heads + job.kv_head * group + head;
            pairs[p] = {args.q + number * dim, within(job.low(args, query)), within(job.position + query + 1),
                        scratch.later + p * record};
        }
        if (direct)
            attend_pairs(pairs, size, stored, args.soft_cap);
        else
            attend_pairs(pairs, size, converted, args.soft_cap);
        for (int64_t p = 0; p < size; ++p)
            if (pairs[p].low < pairs[p].high) use(begin + p, pairs[p].record);
    }
}

// The sum of the weights counts from the largest score, which the sink may exceed.
PENSTOCK_INLINE float with_sink(const float* tail, float sink) {
    const float most = tail[1] > sink ? tail[1] : sink;
    float lanes[16] = {tail[1] - most, sink - most};
    store16(lanes, exp16(load16(lanes)));
    return lanes[0] / (tail[0] * lanes[0] + lanes[1]);
}

// What a pair has seen becomes its result.
PENSTOCK_INLINE void finish(const AttendArgs& args, const Job& job, int64_t pair, const float* record) {
    const int64_t group = args.heads / args.pool.kv_heads, head_dim = args.pool.head_dim;
    const int64_t head = job.kv_head * group + pair % group;
    float* out = args.out + ((job.first + pair / group) * args.heads + head) * head_dim;
    const float* tail = record + padded(head_dim);
    const f32x16 factor = splat(args.sinks == nullptr ? 1.0f / tail[0] : with_sink(tail, args.sinks[head]));
    int64_t i = 0;
    for (; i + 16 <= head_dim; i += 16) store16(out + i, load16(record + i) * factor);
    if (i < head_dim) store_some(out + i, load16(record + i) * factor, head_dim - i);
}

template <KvType type, class Stored>
PENSTOCK_INLINE void attend_job(const AttendArgs& args, const Job& job, Scratch& scratch) {
    const int64_t width = padded(args.pool.head_dim), record = width + kRecordTail;
    const int64_t count = job.count * (args.heads / args.pool.kv_heads);
    bool begun[kJobPairs] = {};
    for (int64_t chunk = job.first_chunk(args); chunk < job.end_chunk(); ++chunk)
        attend_chunk<type, Stored>(args, job, chunk, scratch, [&](int64_t pair, const float* later) {
            float* own = scratch.records + pair * record;
            if (begun[pair])
                merge(own, later, width);
            else
                copy_record(own, later, width);
            begun[pair] = true;
        });
    for (int64_t pair = 0; pair < count; ++pair)
        finish(args, job, pair, scratch.records + pair * record);
}

// ---- Sharing --------------------------------------------------------------------------------------------------------

template <KvType type, class Stored>
PENSTOCK_INLINE void attend_jobs(const AttendArgs& args, Share share, Scratch& scratch) {
    const int64_t group = args.heads / args.pool.kv_heads;
    const int64_t most = kJobPairs / group > 1 ? kJobPairs / group : 1;
    int64_t queries = args.tokens * args.pool.kv_heads / (kJobsPerThread * share.count);
    queries = queries < 8 ? 8 : queries;
    Jobs jobs(args, queries < most ? queries : most);
    int64_t done = 0, begin, end;
    while (share.take(1, jobs.total(), begin, end)) {
        for (; done < begin; ++done) jobs.next();
        attend_job<type, Stored>(args, jobs.next(), scratch);
        ++done;
    }
}

// The chunks [begin, end) of a job of one query, counted from its first one. The thread that brings the last of all its
// chunks merges them.
template <KvType type, class Stored>
PENSTOCK_INLINE void attend_part(const AttendArgs& args, const Job& job, int64_t begin, int64_t end, Scratch& scratch) {
    const int64_t width = padded(args.pool.head_dim), record = width + kRecordTail;
    const int64_t group = args.heads / args.pool.kv_heads, number = job.first * args.pool.kv_heads + job.kv_head;
    const int64_t first = job.first_chunk(args), chunks = job.end_chunk() - first;
    float* parts = args.parts + number * args.max_chunks * group * record;
    for (int64_t chunk = begin; chunk < end; ++chunk)
        attend_chunk<type, Stored>(args, job, first + chunk, scratch, [&](int64_t pair, const float* later) {
            copy_record(parts + (chunk * group + pair) * record, later, width);
        });
    const int32_t arrived = __atomic_add_fetch(args.arrived + number, static_cast<int32_t>(end - begin), __ATOMIC_ACQ_REL);
    if (arrived < chunks) return;
    for (int64_t pair = 0; pair < group; ++pair) {
        float* own = parts + pair * record;
        for (int64_t chunk = 1; chunk < chunks; ++chunk) merge(own, own + chunk * group * record, width);
        finish(args, job, pair, own);
    }
}

// Few queries: their chunks are shared out.
template <KvType type, class Stored>
PENSTOCK_INLINE void attend_parts(const AttendArgs& args, Share share, Scratch& scratch) {
    int64_t chunks = 0, items = 0;
    for (Jobs jobs(args, 1); items < jobs.total(); ++items) {
        const Job job = jobs.next();
        chunks += job.end_chunk() - job.first_chunk(args);
    }
    const int64_t share_of_all = chunks / (2 * kJobsPerThread * share.count) + 1;
    const auto items_of = [&](const Job& job) {
        const int64_t own = job.end_chunk() - job.first_chunk(args);
        return own > args.max_chunks ? 1 : (own + share_of_all - 1) / share_of_all;
    };
    items = 0;
    Jobs counted(args, 1);
    for (int64_t i = 0; i < counted.total(); ++i) items += items_of(counted.next());
    Jobs jobs(args, 1);
    Job job{};
    int64_t before = 0, own = 0, begin, end;  // items of the jobs before this one, and of this one
    while (share.take(1, items, begin, end)) {
        while (begin >= before + own) {
            before += own;
            job = jobs.next();
            own = items_of(job);
        }
        const int64_t total = job.end_chunk() - job.first_chunk(args), item = begin - before;
        if (own == 1)
            attend_job<type, Stored>(args, job, scratch);
        else
            attend_part<type, Stored>(args, job, item * total / own, (item + 1) * total / own, scratch);
    }
}

template <KvType type, class Stored>
PENSTOCK_INLINE void attend(const AttendArgs& args, Share share) {
    Scratch scratch;
    if (args.parts != nullptr)
        attend_parts<type, Stored>(args, share, scratch);
    else
        attend_jobs<type, Stored>(args, share, scratch);
}

}  // namespace

namespace PENSTOCK_ISA {

void attend_float32(const AttendArgs& args, Share share) { attend<KvType::float32, float>(args, share); }
void attend_bfloat16(const AttendArgs& args, Share share) { attend<KvType::bfloat16, uint16_t>(args, share); }
void attend_int8(const AttendArgs& args, Share share) { attend<KvType::int8, int8_t>(args, share); }

}  // namespace PENSTOCK_ISA
}  // namespace penstock::attention
