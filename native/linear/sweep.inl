// How the work of a multiplication is cut, for every instruction set. The including file defines PENSTOCK_ISA and
// before, in namespace penstock::linear and an unnamed one,
//     constexpr int64_t kMaxRows, kTiles;   what a block kernel takes at most, and how many tiles it reads
//     bool has_wide_rows(const Weight&);    see RowRecord
//     template <int Bits, int Groups> struct Kernels {
//         static constexpr int64_t kPreparedBytes;   of a block of a column
//         static constexpr BlockKernel kFirst[kMaxRows], kOther[kMaxRows];   for 1 row, 2 rows, ...
//     };
#include <cstring>

#include "runtime/scratch.hpp"

namespace penstock::linear {
namespace {

constexpr int64_t kColumn = kTiles * kTile;  // outputs of a column of tiles: what a block kernel computes
static_assert(kArgmaxChunk % kColumn == 0);
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

// The kernels for a weight.
struct Chosen {
    int64_t prepared_bytes;
    const BlockKernel *first, *other;
};

template <int Bits>
Chosen with_bits(const Weight& w) {
    const auto chosen = [&](auto kernels) -> Chosen {
        return {num_blocks(w) * kernels.kPreparedBytes, kernels.kFirst, kernels.kOther};
    };
    return groups_per_record(w) == 1 ? chosen(Kernels<Bits, 1>()) : chosen(Kernels<Bits, 2>());
}

Chosen choose(const Weight& w) {
    switch (w.code_bits) {
        case 4:
            return with_bits<4>(w);
        case 5:
            return with_bits<5>(w);
        case 6:
            return with_bits<6>(w);
        default:
            return with_bits<8>(w);
    }
}

// One block of 32 columns of a row: place r of `count` in a record of arranged rows.
template <int Groups, bool Wide>
PENSTOCK_INLINE void arrange_block(const QuantizedRows& x, int64_t i, int64_t r, int64_t count, uint8_t* record) {
    const int8_t* codes = x.codes + i * kBlock;
    const int32_t zero = x.zeros[i];
    const float scale = x.scales[i];
    if constexpr (Wide) {
        int16_t* to = reinterpret_cast<int16_t*>(record) + r * kBlock;
        for (int64_t c = 0; c < kBlock; ++c) to[c] = static_cast<int16_t>(codes[c] - zero);
    } else {
        std::memcpy(record + r * kBlock, codes, kBlock);
    }
    float* scales = reinterpret_cast<float*>(record + count * kBlock * (Wide ? 2 : 1));
    int32_t* minus = reinterpret_cast<int32_t*>(scales + count);
    float* scaled_sums = reinterpret_cast<float*>(minus + Groups * count);
    scales[r] = scale;
    int32_t sums[2] = {x.sums[i], 0};
    if constexpr (Groups == 2) {
        sums[0] = -16 * zero;
        for (int64_t c = 0; c < kBlock / 2; ++c) sums[0] += codes[c];
        sums[1] = x.sums[i] - sums[0];
    }
    for (int g = 0; g < Groups; ++g) {
        minus[g * count + r] = pair16(Wide ? 0 : -zero, -sums[g]);
        scaled_sums[g * count + r] = scale * static_cast<float>(sums[g]);
    }
}

// The rows of a panel as block kernels read them, and the column of tiles that they meet, in memory of this thread.
struct ArrangedRows {
    const Weight& w;
    const Chosen kernels;
    uint8_t* prepared;
    uint8_t* data;
    Parts blocks{0, 0, kMaxRows};

    ArrangedRows(const Weight& weight, int64_t most_rows) : w(weight), kernels(choose(weight)) {
        const int64_t bytes = most_rows > kMaxRows ? kernels.prepared_bytes : 0;
        prepared = static_cast<uint8_t*>(thread_scratch(static_cast<size_t>(bytes + most_rows * stride(w))));
        data = prepared + bytes;
    }

    static int64_t stride(const Weight& w) { return num_blocks(w) * row_bytes(w, has_wide_rows(w)); }

    uint8_t* block(int64_t i) const { return data + (blocks.begin(i) - blocks.first) * stride(w); }

    void arrange(const QuantizedRows& x, int64_t begin, int64_t end) {
        blocks = Parts(begin, end, kMaxRows);
        if (groups_per_record(w) == 1)
            has_wide_rows(w) ? arrange<1, true>(x) : arrange<1, false>(x);
        else
            has_wide_rows(w) ? arrange<2, true>(x) : arrange<2, false>(x);
    }

    template <int Groups, bool Wide>
    void arrange(const QuantizedRows& x) {
        const int64_t num = num_blocks(w), bytes = row_bytes(w, Wide);
        for (int64_t i = 0; i < blocks.count; ++i) {
            const int64_t count = blocks.size(i);
            for (int64_t r = 0; r < count; ++r) {
                uint8_t* record = block(i);
                const int64_t first = (blocks.begin(i) + r) * num;
                for (int64_t b = 0; b < num; ++b, record += count * bytes)
                    arrange_block<Groups, Wide>(x, first + b, r, count, record);
            }
        }
    }

    // Block i of rows times a column of tiles, after the blocks before it. A last column that is not whole repeats the
    // last tile; whoever reads the results leaves those out.
    void multiply(int64_t i, int64_t column, float* results) const {
        const int64_t last = num_tiles(w) - 1, size = blocks.size(i);
        const uint8_t* tiles[kTiles];
        for (int64_t t = 0; t < kTiles; ++t) tiles[t] = w.data + smaller(column * kTiles + t, last) * tile_bytes(w);
        const BlockKernel kernel = (i == 0 ? kernels.first : kernels.other)[size - 1];
        kernel(w, tiles, blocks.count > 1 ? prepared : nullptr, block(i), results);
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
            rows.multiply(i, output / kColumn, results);
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
                rows.multiply(i, column, results);
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
