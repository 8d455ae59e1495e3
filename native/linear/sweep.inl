// How the work of a multiplication is cut, for every instruction set. The including file defines PENSTOCK_ISA and
// before, in namespace penstock::linear and an unnamed one,
//     constexpr int64_t kMaxRows, kTiles;   what a block kernel takes at most, and how many tiles it reads
//     BlockKernel block_kernel(const Weight&, int64_t rows, bool sums_known);   1 <= rows <= kMaxRows
#include <cstring>

#include "runtime/scratch.hpp"

namespace penstock::linear {
namespace {

constexpr int64_t kColumn = kTiles * kTile;  // outputs of a column of tiles: what a block kernel computes
constexpr int64_t kPanelBytes = 3 << 17;     // of arranged rows: a part of a near cache
// Of a panel, for each thread: few, because the first column of a chunk was not asked for before its turn.
constexpr int64_t kChunks = 4;

PENSTOCK_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PENSTOCK_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Parts of nearly equal size, none larger than `most`.
struct Parts {
    int64_t first, total, count;

    Parts(int64_t begin, int64_t end, int64_t most)
        : first(begin), total(end - begin), count((end - begin + most - 1) / most) {}
    int64_t begin(int64_t i) const { return first + total * i / count; }
    int64_t size(int64_t i) const { return begin(i + 1) - begin(i); }
};

// One block of 32 columns of a row: place r of `count` in a record of arranged rows.
PENSTOCK_INLINE void arrange_block(const QuantizedRows& x, const Weight& w, int64_t row, int64_t block, int64_t r,
                                   int64_t count, uint8_t* record) {
    const int64_t i = row * (w.in_features / kBlock) + block, groups = groups_per_record(w);
    const int8_t* codes = x.codes + i * kBlock;
    std::memcpy(record + r * kBlock, codes, kBlock);
    float* scales = reinterpret_cast<float*>(record + count * kBlock);
    int32_t* minus_zero = reinterpret_cast<int32_t*>(scales + count);
    int32_t* offsets = minus_zero + count;
    float* scaled_sums = reinterpret_cast<float*>(offsets + groups * count);
    scales[r] = x.scales[i];
    minus_zero[r] = -x.zeros[i];
    int32_t sum = x.sums[i];
    if (groups == 2) {
        int32_t first_half = -16 * x.zeros[i];
        for (int64_t c = 0; c < kBlock / 2; ++c) first_half += codes[c];
        offsets[r] = -w.zero_point * first_half;
        scaled_sums[r] = x.scales[i] * static_cast<float>(first_half);
        sum -= first_half;
        offsets += count;
        scaled_sums += count;
    }
    offsets[r] = -w.zero_point * sum;
    scaled_sums[r] = x.scales[i] * static_cast<float>(sum);
}

// The rows of a panel as block kernels read them, in memory of this thread.
struct ArrangedRows {
    const Weight& w;
    int32_t* code_sums;
    uint8_t* data;
    Parts blocks{0, 0, kMaxRows};

    ArrangedRows(const Weight& weight, int64_t most_rows) : w(weight) {
        const int64_t num_sums = w.in_features / kBlock * groups_per_record(w) * kColumn;
        code_sums = static_cast<int32_t*>(thread_scratch(static_cast<size_t>(num_sums * 4 + most_rows * stride(w))));
        data = reinterpret_cast<uint8_t*>(code_sums + num_sums);
    }

    static int64_t stride(const Weight& w) { return w.in_features / kBlock * row_bytes(w); }

    uint8_t* block(int64_t i) const { return data + (blocks.begin(i) - blocks.first) * stride(w); }

    void arrange(const QuantizedRows& x, int64_t begin, int64_t end) {
        blocks = Parts(begin, end, kMaxRows);
        for (int64_t i = 0; i < blocks.count; ++i) {
            const int64_t count = blocks.size(i);
            uint8_t* record = block(i);
            for (int64_t b = 0; b < w.in_features / kBlock; ++b, record += count * row_bytes(w))
                for (int64_t r = 0; r < count; ++r) arrange_block(x, w, blocks.begin(i) + r, b, r, count, record);
        }
    }

    // Block i of rows times a column of tiles. A last column that is not whole repeats the last tile; whoever reads the
    // results leaves those out. `again`: the call before was for the same column.
    void multiply(int64_t i, int64_t column, bool again, float* results) const {
        const int64_t last = num_tiles(w) - 1;
        const uint8_t* tiles[kTiles];
        for (int64_t t = 0; t < kTiles; ++t) tiles[t] = w.data + smaller(column * kTiles + t, last) * tile_bytes(w);
        block_kernel(w, blocks.size(i), again)(w, tiles, block(i), code_sums, results);
    }
};

int64_t panel_rows(const Weight& w) { return larger(kPanelBytes / ArrangedRows::stride(w) / kMaxRows, 1) * kMaxRows; }

PENSTOCK_INLINE void store_results(const LinearArgs& args, const float* results, int64_t column, int64_t begin,
                                   int64_t end) {
    const int64_t first = column * kColumn, outputs = smaller(args.weight.out_features - first, kColumn);
    for (int64_t row = begin; row < end; ++row, results += kColumn) {
        float* out = args.out + row * args.out_stride + first;
        for (int64_t o = 0; o < outputs; ++o)
            out[o] = results[o] + (args.bias != nullptr ? args.bias[first + o] : 0.0f);
    }
}

struct Best {
    float value;
    int64_t id;
};

// No value of a column is larger, or NaN: what holds for nearly all columns.
PENSTOCK_INLINE bool none_beats(float best, const float* values) {
    i32x16 beats = ~(load16(values) <= best);
    for (int64_t o = kTile; o < kColumn; o += kTile) beats |= ~(load16(values + o) <= best);
    return !any_lane(beats);
}

// Outputs first, first + 1, ... join: all behind those that `best` has seen. The first NaN stays.
void join(Best& best, const float* values, int64_t first, int64_t count) {
    float largest = values[0];
    bool any_nan = false;
    for (int64_t i = 0; i < count; ++i) {
        largest = values[i] > largest ? values[i] : largest;
        any_nan |= values[i] != values[i];
    }
    if (any_nan && best.value == best.value) {
        int64_t at = 0;
        while (values[at] == values[at]) ++at;
        best = {values[at], first + at};
    }
    if (!(largest > best.value)) return;
    best.value = largest;
    for (int64_t i = count; i-- > 0;)
        if (values[i] == largest) best.id = first + i;
}

// The best of outputs [first, behind) for every arranged row.
void best_of_chunk(const ArgmaxArgs& args, const ArrangedRows& rows, int64_t chunk) {
    const int64_t first = chunk * kArgmaxChunk, behind = smaller(first + kArgmaxChunk, args.weight.out_features);
    float* values = args.values + chunk * args.x.num_rows;
    int64_t* ids = args.ids + chunk * args.x.num_rows;
    alignas(64) float results[kMaxRows * kColumn];
    for (int64_t output = first; output < behind; output += kColumn) {
        for (int64_t i = 0; i < rows.blocks.count; ++i) {
            rows.multiply(i, output / kColumn, i > 0, results);
            for (int64_t r = 0; r < rows.blocks.size(i); ++r) {
                const int64_t row = rows.blocks.begin(i) + r;
                Best best = {-__builtin_inff(), first};
                if (output > first) best = {values[row], ids[row]};
                if (output > first && none_beats(best.value, results + r * kColumn)) continue;
                join(best, results + r * kColumn, output, smaller(behind - output, kColumn));
                values[row] = best.value;
                ids[row] = best.id;
            }
        }
    }
}

}  // namespace

namespace PENSTOCK_ISA {

// Chunks are adjacent columns of tiles for one panel of rows.
void linear(const LinearArgs& args, Share share) {
    const Weight& w = args.weight;
    const int64_t columns = (num_tiles(w) + kTiles - 1) / kTiles;
    const Parts panels(0, args.x.num_rows, panel_rows(w));
    const int64_t most_rows = (args.x.num_rows + panels.count - 1) / panels.count;
    const Parts chunks(0, columns, larger(1, columns / (kChunks * share.count)));
    ArrangedRows rows(w, most_rows);
    alignas(64) float results[kMaxRows * kColumn];
    int64_t arranged = -1, chunk, next;
    while (share.take(1, chunks.count * panels.count, chunk, next)) {
        const int64_t panel = chunk / chunks.count, part = chunk % chunks.count;
        if (panel != arranged) rows.arrange(args.x, panels.begin(panel), panels.begin(panel + 1));
        arranged = panel;
        for (int64_t column = chunks.begin(part); column < chunks.begin(part + 1); ++column) {
            for (int64_t i = 0; i < rows.blocks.count; ++i) {
                rows.multiply(i, column, i > 0, results);
                store_results(args, results, column, rows.blocks.begin(i), rows.blocks.begin(i + 1));
            }
        }
    }
}

void argmax(const ArgmaxArgs& args, Share share) {
    const int64_t chunks = (args.weight.out_features + kArgmaxChunk - 1) / kArgmaxChunk;
    const Parts panels(0, args.x.num_rows, panel_rows(args.weight));
    ArrangedRows rows(args.weight, (args.x.num_rows + panels.count - 1) / panels.count);
    int64_t arranged = -1, chunk, next;
    while (share.take(1, chunks * panels.count, chunk, next)) {
        const int64_t panel = chunk / chunks;
        if (panel != arranged) rows.arrange(args.x, panels.begin(panel), panels.begin(panel + 1));
        arranged = panel;
        best_of_chunk(args, rows, chunk % chunks);
    }
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock::linear
