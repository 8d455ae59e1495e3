// The kernels, over a Step: how a step of columns of one format is held in registers and added to the accumulators. The
// including file defines PENSTOCK_ISA, PENSTOCK_LANES (floats of a register) and PENSTOCK_VECTORS (registers of a tile).
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

// One row of a block into its places, `stride` elements from step to step.
template <class Step>
void arrange_row(const float* x, int64_t cols, typename Step::X* to, int64_t stride) {
    constexpr int kSteps = kPiece / Step::kCols;
    for (int64_t col = 0; col < cols; col += kPiece) {
        float piece[kPiece] = {};
        std::memcpy(piece, x + col, static_cast<size_t>(cols - col < kPiece ? cols - col : kPiece) * sizeof(float));
        typename Step::X made[kSteps * Step::kXs];
        Step::arrange(piece, made);
        const int64_t first = col / Step::kCols, left = steps_of<Step>(cols) - first;
        for (int64_t step = 0; step < kSteps && step < left; ++step)
            for (int i = 0; i < Step::kXs; ++i) to[(first + step) * stride + i] = made[step * Step::kXs + i];
    }
}

template <class Step>
void arrange_block(const ArrangeArgs& args, int64_t block, typename Step::X* out) {
    const Parts blocks = blocks_of<Step>(args.rows);
    const int64_t begin = blocks.begin(block), rows = blocks.size(block);
    typename Step::X* to = out + begin * steps_of<Step>(args.cols) * Step::kXs;
    for (int64_t r = 0; r < rows; ++r)
        arrange_row<Step>(args.x + (begin + r) * args.row_stride, args.cols, to + r * Step::kXs, rows * Step::kXs);
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

// A block of rows times a tile.
template <class Step, int kRows>
__attribute__((noinline)) void multiply(const std::byte* weight, const typename Step::X* x, int64_t steps,
                                        float (*result)[kTile]) {
    Floats sums[kRows][kVectors] = {};
    for (int64_t step = 0; step < steps; ++step) {
        typename Step::Weights weights[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) weights[v] = Step::load(weight + v * kLanes * Step::kWordBytes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) sums[r][v] = Step::add(sums[r][v], weights[v], x + r * Step::kXs);
        weight += kTile * Step::kWordBytes;
        x += kRows * Step::kXs;
    }
    std::memcpy(result, sums, sizeof sums);
}

template <class Step, int kRows = Step::kRows>
PENSTOCK_INLINE void multiply_rows(int64_t rows, const std::byte* weight, const typename Step::X* x, int64_t steps,
                                   float (*result)[kTile]) {
    if constexpr (kRows > 1)
        if (rows < kRows) return multiply_rows<Step, kRows - 1>(rows, weight, x, steps, result);
    multiply<Step, kRows>(weight, x, steps, result);
}

// Calls use(first row, rows, result) for every block of rows from block `begin` to `end`, multiplied with tile `tile`.
template <class Step, class Use>
PENSTOCK_INLINE void multiply_blocks(const LinearArgs& args, const typename Step::X* x, int64_t tile, int64_t begin,
                                     int64_t end, Use use) {
    const Parts blocks = blocks_of<Step>(args.x.rows);
    const int64_t steps = steps_of<Step>(args.x.cols);
    const std::byte* weight = static_cast<const std::byte*>(args.weight) + tile * steps * kTile * Step::kWordBytes;
    alignas(64) float result[kMaxBlockRows][kTile];
    for (int64_t block = begin; block < end; ++block) {
        const int64_t first = blocks.begin(block);
        multiply_rows<Step>(blocks.size(block), weight, x + first * steps * Step::kXs, steps, result);
        use(first, blocks.size(block), result);
    }
}

template <class Step>
void linear(const LinearArgs& args, Share share) {
    const typename Step::X* x = arranged<Step>(args, share);
    const int64_t tiles = divide_up(args.outs, kTile), blocks = blocks_of<Step>(args.x.rows).count;
    const int64_t block_bytes = Step::kRows * steps_of<Step>(args.x.cols) * Step::kXs * 4;
    const Parts panels{divide_up(blocks * block_bytes, kPanelBytes > block_bytes ? kPanelBytes : block_bytes), blocks};
    const int64_t items = panels.count * tiles;
    int64_t chunk = items / (share.count * 16);
    chunk = chunk < 1 ? 1 : chunk > 8 ? 8 : chunk;
    int64_t begin, end;
    while (share.take(chunk, items, begin, end))
        for (int64_t item = begin; item < end; ++item) {
            const int64_t panel = item / tiles, out = item % tiles * kTile;
            const int64_t width = args.outs - out < kTile ? args.outs - out : kTile;
            const auto store = [&](int64_t first, int64_t rows, const float (*result)[kTile]) {
                for (int64_t r = 0; r < rows; ++r) {
                    float* to = args.out + (first + r) * args.outs + out;
                    for (int64_t i = 0; i < width; ++i)
                        to[i] = args.bias == nullptr ? result[r][i] : result[r][i] + args.bias[out + i];
                }
            };
            multiply_blocks<Step>(args, x, out / kTile, panels.begin(panel), panels.begin(panel + 1), store);
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
    const typename Step::X* x = arranged<Step>(linear, share);
    const int64_t tiles = divide_up(linear.outs, kTile), rows = linear.x.rows;
    int64_t chunk, next;
    while (share.take(1, divide_up(tiles, args.chunk_tiles), chunk, next)) {
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
            multiply_blocks<Step>(linear, x, tile, 0, blocks_of<Step>(rows).count, keep);
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
                const int64_t cols = out >= args.outs ? 0 : args.cols - col < Step::kCols ? args.cols - col : Step::kCols;
                std::memset(to, 0, Step::kWordBytes);
                if (cols > 0)
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
