// The kernels, over a Step: how a step of columns of one format is held in registers and added to its Sums. The
// including file defines PENSTOCK_ISA, PENSTOCK_LANES (floats of a register), PENSTOCK_VECTORS (registers of a tile).
#include <cstddef>

#include "linear_dense/linear_dense.hpp"
#include "simd/vec.hpp"

namespace penstock::linear_dense {
namespace {

constexpr int kLanes = PENSTOCK_LANES, kVectors = PENSTOCK_VECTORS, kTile = kLanes * kVectors;
constexpr int kMaxBlockRows = 16;
// Columns that are arranged at a time.
constexpr int kPiece = 64;
// Arranged activations that stay in a core's level 2 cache while all tiles pass by.
constexpr int64_t kPanelBytes = 384 * 1024;

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

template <class T>
PENSTOCK_INLINE T load(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// Ranges of nearly equal size: part i of total is [begin(i), begin(i + 1)).
struct Parts {
    int64_t count, total;

    int64_t begin(int64_t i) const { return i * total / count; }
    int64_t size(int64_t i) const { return begin(i + 1) - begin(i); }
};

template <class Step>
PENSTOCK_INLINE int64_t steps_of(int64_t cols) { return divide_up(cols, Step::kCols); }

template <class Step>
PENSTOCK_INLINE Parts blocks_of(int64_t rows) { return {divide_up(rows, Step::kRows), rows}; }

typedef uint32_t Four __attribute__((vector_size(16)));

// Four rows of four elements, `stride` apart, to four columns, `to_stride` apart.
PENSTOCK_INLINE void transpose_four(const uint32_t* from, int64_t stride, uint32_t* to, int64_t to_stride) {
    const Four a = load<Four>(from), b = load<Four>(from + stride);
    const Four c = load<Four>(from + 2 * stride), d = load<Four>(from + 3 * stride);
    const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const Four columns[] = {
        __builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
        __builtin_shufflevector(ab2, cd2, 0, 1, 4, 5), __builtin_shufflevector(ab2, cd2, 2, 3, 6, 7)};
    for (int i = 0; i < 4; ++i) std::memcpy(to + i * to_stride, &columns[i], sizeof(Four));
}

// Columns that were made ready row by row, [rows][kPiece / kCols steps], to [steps][rows].
template <class Step>
void interleave(const typename Step::X* made, int64_t rows, int64_t steps, typename Step::X* to) {
    constexpr int64_t kSteps = kPiece / Step::kCols, kBytes = Step::kXs * sizeof(typename Step::X);
    int64_t row = 0;
    if constexpr (kBytes == sizeof(uint32_t))
        if (steps == kSteps)
            for (; row + 4 <= rows; row += 4)
                for (int64_t step = 0; step < kSteps; step += 4)
                    transpose_four(reinterpret_cast<const uint32_t*>(made) + row * kSteps + step, kSteps,
                                   reinterpret_cast<uint32_t*>(to) + step * rows + row, rows);
    for (int64_t step = 0; step < steps; ++step)
        for (int64_t r = row; r < rows; ++r)
            std::memcpy(to + (step * rows + r) * Step::kXs, made + (r * kSteps + step) * Step::kXs, kBytes);
}

template <class Step>
void arrange_block(const ArrangeArgs& args, int64_t block, typename Step::X* out) {
    constexpr int64_t kSteps = kPiece / Step::kCols;
    const Parts blocks = blocks_of<Step>(args.rows);
    const int64_t begin = blocks.begin(block), rows = blocks.size(block), steps = steps_of<Step>(args.cols);
    typename Step::X* to = out + begin * steps * Step::kXs;
    typename Step::X made[kMaxBlockRows * kSteps * Step::kXs];
    for (int64_t col = 0; col < args.cols; col += kPiece) {
        const int64_t cols = args.cols - col < kPiece ? args.cols - col : kPiece;
        for (int64_t r = 0; r < rows; ++r) {
            const float* x = args.x + (begin + r) * args.row_stride + col;
            typename Step::X* to_row = made + r * kSteps * Step::kXs;
            if (cols == kPiece) {
                Step::arrange(x, to_row);
            } else {
                float piece[kPiece] = {};
                std::memcpy(piece, x, static_cast<size_t>(cols) * sizeof(float));
                Step::arrange(piece, to_row);
            }
        }
        interleave<Step>(made, rows, steps_of<Step>(cols), to + col / Step::kCols * rows * Step::kXs);
    }
}

template <class Step>
void arrange(const ArrangeArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(1, blocks_of<Step>(args.rows).count, begin, end))
        arrange_block<Step>(args, begin, static_cast<typename Step::X*>(args.out));
}

// The arranged activations, made now in this thread's copy where nobody made them before.
template <class Step>
const typename Step::X* arranged(const LinearArgs& args, Share share) {
    const int64_t copy = args.x.rows * steps_of<Step>(args.x.cols) * Step::kXs;
    auto* x = static_cast<typename Step::X*>(args.x.out);
    if (!args.arrange) return x;
    x += share.index * copy;
    for (int64_t block = 0; block < blocks_of<Step>(args.x.rows).count; ++block) arrange_block<Step>(args.x, block, x);
    return x;
}

// Weights that are needed soon: every step fetches what a step has at `at`, which then moves on by `advance` bytes.
struct Ahead {
    const std::byte* at;
    int64_t advance;
};

// Accumulators of a block of rows and a tile, where a register has one column of as many outputs as it has lanes.
template <class Step, int kRows>
struct LaneSums {
    Floats sums[kRows][kVectors] = {};

    PENSTOCK_INLINE void add(const std::byte* weight, const typename Step::X* x) {
        typename Step::Weights weights[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) weights[v] = Step::load(weight + v * kLanes * Step::kWordBytes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sums[r][v] = Step::add(sums[r][v], weights[v], x + r * Step::kXs);
    }

    PENSTOCK_INLINE void store(float (*result)[kTile]) const { std::memcpy(result, sums, sizeof sums); }
};

// A block of rows times a tile.
template <class Step, int kRows>
__attribute__((noinline)) void multiply(const std::byte* weight, const typename Step::X* x, int64_t steps, Ahead ahead,
                                        float (*result)[kTile]) {
    typename Step::template Sums<kRows> sums;
    for (int64_t step = 0; step < steps; ++step) {
        __builtin_prefetch(ahead.at, 0, 2);
        if constexpr (kTile * Step::kWordBytes > 64) __builtin_prefetch(ahead.at + 64, 0, 2);
        ahead.at += ahead.advance;
        sums.add(weight, x);
        weight += kTile * Step::kWordBytes;
        x += kRows * Step::kXs;
    }
    sums.store(result);
}

template <class Step, int kRows = Step::kRows>
PENSTOCK_INLINE void multiply_rows(int64_t rows, const std::byte* weight, const typename Step::X* x, int64_t steps,
                                   Ahead ahead, float (*result)[kTile]) {
    if constexpr (kRows > 1)
        if (rows < kRows) return multiply_rows<Step, kRows - 1>(rows, weight, x, steps, ahead, result);
    multiply<Step, kRows>(weight, x, steps, ahead, result);
}

// The items of a step that this thread computes, one after the other, each known before the one before it is computed.
struct Items {
    const Share& share;
    int64_t chunk, total, begin, end;

    Items(const Share& share_, int64_t total_, int64_t max_chunk) : share(share_), total(total_), begin(0), end(0) {
        chunk = total / (share.count * 16);
        chunk = chunk < 1 ? 1 : chunk > max_chunk ? max_chunk : chunk;
    }

    bool next(int64_t& item) {
        if (begin == end && !share.take(chunk, total, begin, end)) return false;
        item = begin++;
        return true;
    }
};

// Calls use(first row, rows, result) for every block of rows from block `begin` to `end`, multiplied with tile `tile`.
// Tile `following` comes into the cache meanwhile.
template <class Step, class Use>
PENSTOCK_INLINE void multiply_blocks(const LinearArgs& args, const typename Step::X* x, int64_t tile, int64_t following,
                                     int64_t begin, int64_t end, Use use) {
    const Parts blocks = blocks_of<Step>(args.x.rows);
    const int64_t steps = steps_of<Step>(args.x.cols);
    const int64_t tile_bytes = steps * kTile * Step::kWordBytes;
    const auto* weights = static_cast<const std::byte*>(args.weight);
    const std::byte* weight = weights + tile * tile_bytes;
    Ahead ahead{weights + following * tile_bytes, kTile * Step::kWordBytes / (end - begin)};
    alignas(64) float result[kMaxBlockRows][kTile];
    for (int64_t block = begin; block < end; ++block) {
        const int64_t first = blocks.begin(block);
        multiply_rows<Step>(blocks.size(block), weight, x + first * steps * Step::kXs, steps, ahead, result);
        ahead.at += steps * ahead.advance;
        use(first, blocks.size(block), result);
    }
}

template <class Step>
void linear(const LinearArgs& args, Share share) {
    const int64_t tiles = divide_up(args.outs, kTile), blocks = blocks_of<Step>(args.x.rows).count;
    const int64_t block_bytes = Step::kRows * steps_of<Step>(args.x.cols) * Step::kXs * 4;
    const Parts panels{divide_up(blocks * block_bytes, kPanelBytes > block_bytes ? kPanelBytes : block_bytes), blocks};
    Items items(share, panels.count * tiles, 8);
    int64_t item, following = 0;
    bool more = items.next(item);
    if (!more) return;
    const typename Step::X* x = arranged<Step>(args, share);
    for (; more; item = following) {
        following = item;
        more = items.next(following);
        const int64_t panel = item / tiles, out = item % tiles * kTile;
        const int64_t width = args.outs - out < kTile ? args.outs - out : kTile;
        const auto store = [&](int64_t first, int64_t rows, const float (*result)[kTile]) {
            for (int64_t r = 0; r < rows; ++r) {
                float* to = args.out + (first + r) * args.out_stride + out;
                for (int64_t i = 0; i < width; ++i)
                    to[i] = args.bias == nullptr ? result[r][i] : result[r][i] + args.bias[out + i];
            }
        };
        multiply_blocks<Step>(args, x, out / kTile, following % tiles, panels.begin(panel), panels.begin(panel + 1),
                              store);
    }
}

// Takes `found` as the best where it is larger than the one so far, or the first NaN.
PENSTOCK_INLINE void improve(float& best, int64_t& best_id, const float* found, int64_t first_id, int64_t n) {
    bool any = false;
    for (int64_t i = 0; i < n; ++i) any |= !(found[i] <= best);
    if (!any) return;
    for (int64_t i = 0; i < n; ++i)
        if (best == best && !(found[i] <= best)) {
            best = found[i];
            best_id = first_id + i;
        }
}

template <class Step>
void argmax(const ArgmaxArgs& args, Share share) {
    const LinearArgs& linear = args.linear;
    const typename Step::X* x = nullptr;
    const int64_t tiles = divide_up(linear.outs, kTile), rows = linear.x.rows;
    int64_t chunk, next;
    while (share.take(1, divide_up(tiles, args.chunk_tiles), chunk, next)) {
        if (x == nullptr) x = arranged<Step>(linear, share);
        float* values = args.values + chunk * rows;
        int64_t* ids = args.ids + chunk * rows;
        const int64_t last = next * args.chunk_tiles < tiles ? next * args.chunk_tiles : tiles;
        for (int64_t r = 0; r < rows; ++r) {
            values[r] = -__builtin_inff();
            ids[r] = chunk * args.chunk_tiles * kTile;
        }
        for (int64_t tile = chunk * args.chunk_tiles; tile < last; ++tile) {
            const int64_t out = tile * kTile, width = linear.outs - out < kTile ? linear.outs - out : kTile;
            const auto keep = [&](int64_t first, int64_t block_rows, const float (*result)[kTile]) {
                for (int64_t r = 0; r < block_rows; ++r)
                    improve(values[first + r], ids[first + r], result[r], out, width);
            };
            const int64_t following = tile + 1 < last ? tile + 1 : tile;
            multiply_blocks<Step>(linear, x, tile, following, 0, blocks_of<Step>(rows).count, keep);
        }
    }
}

template <class Step>
void pack(const PackArgs& args, Share share) {
    constexpr int64_t kElement = Step::kWordBytes / Step::kCols;
    const auto* values = static_cast<const std::byte*>(args.values);
    const int64_t steps = steps_of<Step>(args.cols);
    int64_t tile, next;
    while (share.take(1, divide_up(args.outs, kTile), tile, next)) {
        std::byte* to = static_cast<std::byte*>(args.out) + tile * steps * kTile * Step::kWordBytes;
        for (int64_t step = 0; step < steps; ++step)
            for (int64_t i = 0; i < kTile; ++i, to += Step::kWordBytes) {
                const int64_t out = tile * kTile + i, col = step * Step::kCols;
                const int64_t cols = args.cols - col < Step::kCols ? args.cols - col : Step::kCols;
                std::memset(to, 0, Step::kWordBytes);
                if (out < args.outs)
                    std::memcpy(to, values + (out * args.row_stride + col) * kElement,
                                static_cast<size_t>(cols * kElement));
            }
    }
}

template <class Step>
void embed(const EmbedArgs& args, Share share) {
    constexpr int64_t kElement = Step::kWordBytes / Step::kCols;
    const int64_t steps = steps_of<Step>(args.cols);
    int64_t row, next;
    while (share.take(1, args.rows, row, next)) {
        const int64_t id = args.ids[row];
        float* to = args.out + row * args.cols;
        const bool exists = id >= 0 && id < args.outs;
        const std::byte* from = static_cast<const std::byte*>(args.weight) +
                                (exists ? (id / kTile * steps * kTile + id % kTile) * Step::kWordBytes : 0);
        for (int64_t col = 0; col < args.cols; ++col) {
            const std::byte* word = from + col / Step::kCols * kTile * Step::kWordBytes;
            to[col] = exists ? Step::value(word + col % Step::kCols * kElement) : __builtin_nanf("");
        }
    }
}

template <class Step>
constexpr Kernels kernels_of{{kTile, Step::kCols, Step::kRows, Step::kXs * 4},
                             pack<Step>, arrange<Step>, linear<Step>, argmax<Step>, embed<Step>};

PENSTOCK_INLINE float widen_bf16(const std::byte* from) {
    const uint32_t bits = static_cast<uint32_t>(load<uint16_t>(from)) << 16;
    return load<float>(&bits);
}

}  // namespace
}  // namespace penstock::linear_dense
