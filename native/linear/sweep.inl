// How the work of a multiplication is cut, for every instruction set. The including file defines PENSTOCK_ISA and before,
// in namespace penstock::linear and an unnamed one,
//     constexpr int64_t kMaxRows, kTiles;                  what a block kernel takes at most, and how many tiles it reads
//     BlockKernel block_kernel(const Weight&, int64_t rows);   1 <= rows <= kMaxRows
namespace penstock::linear {
namespace {

constexpr int64_t kColumn = kTiles * kTile;  // outputs of a column of tiles: what a block kernel computes
constexpr int64_t kPanel = 128;              // rows whose codes a near cache holds while all columns pass by
constexpr int64_t kChunkWork = 1 << 18;      // multiplications of a chunk: about a microsecond

// Parts of nearly equal size, none larger than `most`.
struct Parts {
    int64_t begin_at, total, count;

    Parts(int64_t begin, int64_t end, int64_t most)
        : begin_at(begin), total(end - begin), count((end - begin + most - 1) / most) {}
    int64_t begin(int64_t i) const { return begin_at + total * i / count; }
};

struct Kernels {
    BlockKernel of_rows[kMaxRows + 1];

    explicit Kernels(const Weight& weight) : of_rows{} {
        for (int64_t rows = 1; rows <= kMaxRows; ++rows) of_rows[rows] = block_kernel(weight, rows);
    }

    // A last column that is not whole repeats the last tile; whoever reads the results leaves those out.
    PENSTOCK_INLINE void multiply(const Weight& w, int64_t column, const QuantizedRows& x, int64_t begin, int64_t end,
                                  float* results) const {
        const int64_t blocks = w.in_features / kBlock, last = num_tiles(w) - 1;
        const uint8_t* tiles[kTiles];
        for (int64_t t = 0; t < kTiles; ++t) {
            const int64_t tile = column * kTiles + t;
            tiles[t] = w.data + (tile < last ? tile : last) * tile_bytes(w);
        }
        const QuantizedRows rows{x.codes + begin * w.in_features, x.scales + begin * blocks, x.zeros + begin * blocks,
                                 x.sums + begin * blocks, end - begin};
        of_rows[end - begin](w, tiles, rows, results);
    }
};

PENSTOCK_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PENSTOCK_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

PENSTOCK_INLINE void store_results(const LinearArgs& args, const float* results, int64_t column, int64_t begin,
                                   int64_t end) {
    const int64_t first = column * kColumn, outputs = smaller(args.weight.out_features - first, kColumn);
    for (int64_t row = begin; row < end; ++row, results += kColumn) {
        float* out = args.out + row * args.out_stride + first;
        for (int64_t o = 0; o < outputs; ++o) out[o] = results[o] + (args.bias != nullptr ? args.bias[first + o] : 0.0f);
    }
}

struct Best {
    float value;
    int64_t id;
};

// Outputs first, first + 1, ... join: all behind those that `best` has seen. The first NaN stays.
PENSTOCK_INLINE void join(Best& best, const float* values, int64_t first, int64_t count) {
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

}  // namespace

namespace PENSTOCK_ISA {

// Items are columns of tiles by panels of rows; a chunk lies in one panel.
void linear(const LinearArgs& args, Share share) {
    const Weight& w = args.weight;
    if (args.x.num_rows == 0) return;
    const Kernels kernels(w);
    const int64_t columns = (num_tiles(w) + kTiles - 1) / kTiles;
    const Parts panels(0, args.x.num_rows, kPanel);
    const int64_t column_work = w.in_features * kColumn * smaller(larger(args.x.num_rows, kMaxRows), kPanel);
    const int64_t per_chunk = larger(1, smaller(kChunkWork / column_work, columns / 8));
    const int64_t chunks = (columns + per_chunk - 1) / per_chunk;
    alignas(64) float results[kMaxRows * kColumn];
    int64_t chunk, end;
    while (share.take(1, chunks * panels.count, chunk, end)) {
        const int64_t panel = chunk / chunks, first = chunk % chunks * per_chunk;
        const Parts blocks(panels.begin(panel), panels.begin(panel + 1), kMaxRows);
        for (int64_t column = first; column < smaller(first + per_chunk, columns); ++column) {
            for (int64_t i = 0; i < blocks.count; ++i) {
                kernels.multiply(w, column, args.x, blocks.begin(i), blocks.begin(i + 1), results);
                store_results(args, results, column, blocks.begin(i), blocks.begin(i + 1));
            }
        }
    }
}

void argmax(const ArgmaxArgs& args, Share share) {
    const Weight& w = args.weight;
    if (args.x.num_rows == 0) return;
    const Kernels kernels(w);
    const Parts blocks(0, args.x.num_rows, kMaxRows);
    alignas(64) float results[kMaxRows * kColumn];
    int64_t chunk, end;
    while (share.take(1, (w.out_features + kArgmaxChunk - 1) / kArgmaxChunk, chunk, end)) {
        const int64_t first = chunk * kArgmaxChunk, behind = smaller(first + kArgmaxChunk, w.out_features);
        for (int64_t i = 0; i < blocks.count; ++i) {
            const int64_t begin = blocks.begin(i), rows = blocks.begin(i + 1) - begin;
            Best bests[kMaxRows];
            for (int64_t r = 0; r < rows; ++r) bests[r] = {-__builtin_inff(), first};
            for (int64_t output = first; output < behind; output += kColumn) {
                kernels.multiply(w, output / kColumn, args.x, begin, begin + rows, results);
                for (int64_t r = 0; r < rows; ++r)
                    join(bests[r], results + r * kColumn, output, smaller(behind - output, kColumn));
            }
            for (int64_t r = 0; r < rows; ++r) {
                args.values[chunk * args.x.num_rows + begin + r] = bests[r].value;
                args.ids[chunk * args.x.num_rows + begin + r] = bests[r].id;
            }
        }
    }
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock::linear
