// What is not worth writing for each instruction set: packing, once at load, and reading single rows.
#include <cstring>

#include "linear/linear.hpp"
#include "simd/half.hpp"

namespace penstock::linear {
namespace {

// Four adjacent columns of an output lie beside one another in any layout, and are handled as the bytes of a word.
constexpr int64_t kQuad = 4;

// Where four columns of a block are, from `column` on.
struct Place {
    int64_t line, lane;

    PENSTOCK_INLINE Place(int64_t output, int64_t column, int64_t span) {
        const int64_t place = column / span * (kTile * span) + output * span + column % span;
        line = place / 64;
        lane = place % 64;
    }
};

PENSTOCK_INLINE uint32_t load_word(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

PENSTOCK_INLINE void add_bits(uint8_t* to, uint32_t bits) {
    const uint32_t word = load_word(to) | bits;
    std::memcpy(to, &word, sizeof word);
}

// Into a block that is all zeros where nothing was stored yet.
PENSTOCK_INLINE void store_quad(uint8_t* block, const Place& at, int bits, uint32_t codes) {
    if (bits == 8) {
        add_bits(block + at.line * 64 + at.lane, codes);
        return;
    }
    add_bits(block + at.line / 2 * 64 + at.lane, (codes & 0x0f0f0f0f) << (at.line % 2 * 4));
    if (bits == 5) add_bits(block + 256 + at.lane, (codes >> 4 & 0x01010101) << at.line);
    if (bits == 6) add_bits(block + 256 + at.line / 4 * 64 + at.lane, (codes >> 4 & 0x03030303) << (at.line % 4 * 2));
}

PENSTOCK_INLINE uint32_t load_quad(const uint8_t* block, const Place& at, int bits) {
    if (bits == 8) return load_word(block + at.line * 64 + at.lane);
    const uint32_t low = load_word(block + at.line / 2 * 64 + at.lane) >> (at.line % 2 * 4) & 0x0f0f0f0f;
    if (bits == 5) return low | (load_word(block + 256 + at.lane) >> at.line & 0x01010101) << 4;
    if (bits == 6)
        return low | (load_word(block + 256 + at.line / 4 * 64 + at.lane) >> (at.line % 4 * 2) & 0x03030303) << 4;
    return low;
}

PENSTOCK_INLINE float load_scale(const uint8_t* scales, int64_t index, int bits) {
    if (bits == 32) {
        float value;
        std::memcpy(&value, scales + index * 4, 4);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, scales + index * 2, 2);
    return widen_half(half);
}

// One output's scales or minima of one record.
void pack_scales(const PackArgs& args, const void* from, uint8_t* to, int64_t output, int64_t record) {
    const Weight& w = args.weight;
    const int64_t per_record = groups_per_record(w), size = w.scale_bits / 8;
    const int64_t first = output * (w.in_features / w.group_size) + record * per_record;
    for (int64_t g = 0; g < per_record; ++g)
        std::memcpy(to + (g * kTile + output % kTile) * size, static_cast<const uint8_t*>(from) + (first + g) * size,
                    static_cast<size_t>(size));
}

void pack_tile(const PackArgs& args, int64_t tile) {
    const Weight& w = args.weight;
    uint8_t* to = args.data + tile * tile_bytes(w);
    std::memset(to, 0, static_cast<size_t>(tile_bytes(w)));
    const int64_t outputs = w.out_features - tile * kTile < kTile ? w.out_features - tile * kTile : kTile;
    const int64_t blocks = blocks_per_record(w);
    for (int64_t record = 0; record < num_records(w); ++record, to += record_bytes(w)) {
        for (int64_t o = 0; o < outputs; ++o) {
            const int64_t output = tile * kTile + o;
            pack_scales(args, args.scales, to, output, record);
            if (w.has_min) pack_scales(args, args.mins, to + scales_bytes(w), output, record);
            const uint8_t* codes = args.codes + output * w.in_features + record * blocks * kBlock;
            for (int64_t c = 0; c < blocks * kBlock; c += kQuad)
                store_quad(to + header_bytes(w) + c / kBlock * block_bytes(w), Place(o, c % kBlock, args.span),
                           w.code_bits, load_word(codes + c));
        }
    }
}

void embed_row(const EmbeddingArgs& args, int64_t output, float* out) {
    const Weight& w = args.weight;
    const uint8_t* record = w.data + output / kTile * tile_bytes(w);
    const int64_t o = output % kTile, columns = blocks_per_record(w) * kBlock;
    for (int64_t r = 0; r < num_records(w); ++r, record += record_bytes(w)) {
        for (int64_t c = 0; c < columns; c += w.group_size) {
            const int64_t scale_at = c / w.group_size * kTile + o;
            const float scale = load_scale(record, scale_at, w.scale_bits);
            const float min = w.has_min ? load_scale(record + scales_bytes(w), scale_at, w.scale_bits) : 0.0f;
            for (int64_t quad = c; quad < c + w.group_size; quad += kQuad, out += kQuad) {
                const uint8_t* block = record + header_bytes(w) + quad / kBlock * block_bytes(w);
                const uint32_t codes = load_quad(block, Place(o, quad % kBlock, args.span), w.code_bits);
                for (int i = 0; i < kQuad; ++i) {
                    const int code = static_cast<int>(codes >> (i * 8) & 255);
                    out[i] = (scale * static_cast<float>(code - w.zero_point) + min) * args.scale;
                }
            }
        }
    }
}

}  // namespace

void pack(const PackArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(1, num_tiles(args.weight), begin, end)) pack_tile(args, begin);
}

void embedding(const EmbeddingArgs& args, Share share) {
    int64_t row, next;
    while (share.take(1, args.num_rows, row, next)) {
        float* out = args.out + row * args.weight.in_features;
        if (args.ids[row] >= 0 && args.ids[row] < args.weight.out_features)
            embed_row(args, args.ids[row], out);
        else
            for (int64_t c = 0; c < args.weight.in_features; ++c) out[c] = __builtin_nanf("");
    }
}

}  // namespace penstock::linear
