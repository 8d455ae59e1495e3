// What is not worth writing for each instruction set: packing, once at load, and reading single rows.
#include <cstring>

#include "linear/linear.hpp"
#include "simd/half.hpp"

namespace penstock::linear {
namespace {

// Where a code is among the 512 of its block.
PENSTOCK_INLINE int64_t place_in_block(int64_t output, int64_t column, int64_t span) {
    return column / span * (kTile * span) + output * span + column % span;
}

PENSTOCK_INLINE void store_code(uint8_t* block, int64_t place, int bits, uint8_t code) {
    const int64_t line = place / 64, lane = place % 64;
    if (bits == 8) {
        block[place] = code;
        return;
    }
    block[line / 2 * 64 + lane] |= static_cast<uint8_t>((code & 15) << (line % 2 * 4));
    if (bits == 5) block[256 + lane] |= static_cast<uint8_t>((code >> 4 & 1) << line);
    if (bits == 6) block[256 + line / 4 * 64 + lane] |= static_cast<uint8_t>((code >> 4 & 3) << (line % 4 * 2));
}

PENSTOCK_INLINE int load_code(const uint8_t* block, int64_t place, int bits) {
    const int64_t line = place / 64, lane = place % 64;
    if (bits == 8) return block[place];
    const int low = block[line / 2 * 64 + lane] >> (line % 2 * 4) & 15;
    if (bits == 5) return low | (block[256 + lane] >> line & 1) << 4;
    if (bits == 6) return low | (block[256 + line / 4 * 64 + lane] >> (line % 4 * 2) & 3) << 4;
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
            for (int64_t c = 0; c < blocks * kBlock; ++c)
                store_code(to + header_bytes(w) + c / kBlock * block_bytes(w),
                           place_in_block(o, c % kBlock, args.span), w.code_bits, codes[c]);
        }
    }
}

void embed_row(const EmbeddingArgs& args, int64_t output, float* out) {
    const Weight& w = args.weight;
    const uint8_t* record = w.data + output / kTile * tile_bytes(w);
    const int64_t o = output % kTile, columns = blocks_per_record(w) * kBlock;
    for (int64_t r = 0; r < num_records(w); ++r, record += record_bytes(w), out += columns) {
        for (int64_t c = 0; c < columns; ++c) {
            const int64_t place = c % w.group_size, group = (c - place) / w.group_size;
            const float scale = load_scale(record, group * kTile + o, w.scale_bits);
            const int code = load_code(record + header_bytes(w) + c / kBlock * block_bytes(w),
                                       place_in_block(o, c % kBlock, args.span), w.code_bits);
            float value = scale * static_cast<float>(code - w.zero_point);
            if (w.has_min) value += load_scale(record + scales_bytes(w), group * kTile + o, w.scale_bits);
            out[c] = value * args.scale;
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
