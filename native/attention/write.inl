// Compiled once per instruction set: the including file defines PENSTOCK_ISA.
//
// Rotation of queries and keys, and the write of keys and values to their tiles.
#include "attention/attention.hpp"
#include "simd/vec.hpp"

namespace penstock::attention {
namespace {

// x[j] * cos[j] + x[j + d/2 mod d] * sin[j], times the factor.
PENSTOCK_INLINE void rotate(const float* x, const float* cosines, const float* sines, float factor, int64_t size,
                            float* out) {
    const int64_t half = size / 2;
    if (cosines == nullptr) {
        for (int64_t j = 0; j < size; ++j) out[j] = x[j] * factor;
    } else if (half % 16 == 0) {
        for (int64_t j = 0; j < half; j += 16) {
            const f32x16 first = load16(x + j), second = load16(x + half + j);
            store16(out + j, (first * load16(cosines + j) + second * load16(sines + j)) * factor);
            store16(out + half + j, (second * load16(cosines + half + j) + first * load16(sines + half + j)) * factor);
        }
    } else {
        for (int64_t j = 0; j < half; ++j) {
            const float first = x[j], second = x[half + j];
            out[j] = (first * cosines[j] + second * sines[j]) * factor;
            out[half + j] = (second * cosines[half + j] + first * sines[half + j]) * factor;
        }
    }
}

// Puts `size` floats `stride` elements apart. Reads whole vectors: `from` is padded to a multiple of 16.
PENSTOCK_INLINE void put(const float* from, int64_t size, float* to, int64_t stride, float*) {
    for (int64_t i = 0; i < size; ++i) to[i * stride] = from[i];
}

PENSTOCK_INLINE void put(const float* from, int64_t size, uint16_t* to, int64_t stride, float*) {
    uint16_t narrow[kMaxHeadDim];
    for (int64_t i = 0; i < size; i += 16) narrow_bf16(narrow + i, load16(from + i));
    for (int64_t i = 0; i < size; ++i) to[i * stride] = narrow[i];
}

// The scale maps the largest value to 127. A value that is not finite makes the scale a NaN, so that it is not lost.
PENSTOCK_INLINE void put(const float* from, int64_t size, int8_t* to, int64_t stride, float* scale) {
    f32x16 largest{}, spoiled{};
    for (int64_t i = 0; i < size; i += 16) {
        const f32x16 value = load16(from + i);
        largest = max16(largest, abs16(value));
        spoiled += value * 0.0f;
    }
    const float most = max_lanes(largest);
    *scale = most / 127.0f + sum_lanes(spoiled);
    const float factor = most > 0.0f ? 127.0f / most : 0.0f;
    int8_t codes[kMaxHeadDim];
    for (int64_t i = 0; i < size; i += 16) store_i8(codes + i, round16(load16(from + i) * factor));
    for (int64_t i = 0; i < size; ++i) to[i * stride] = codes[i];
}

template <KvType type, class Stored>
PENSTOCK_INLINE void write_entry(const WriteArgs& args, int64_t token, int64_t kv_head, const float* key,
                                 const float* value) {
    const int64_t dim = args.pool.head_dim, place = args.slots[token] % kTile;
    const int64_t block = args.slots[token] / args.pool.block_tokens;
    char* tile = args.pool.tile(type, block, kv_head, args.slots[token] % args.pool.block_tokens);
    Stored* keys = reinterpret_cast<Stored*>(tile);
    Stored* values = keys + dim * kTile;
    float* scales = reinterpret_cast<float*>(values + kTile * padded(dim));
    put(key, dim, keys + place, kTile, scales + place);
    put(value, dim, values + place * padded(dim), 1, scales + kTile + place);
}

template <KvType type, class Stored>
PENSTOCK_INLINE void write_tokens(const WriteArgs& args, Share share) {
    const int64_t dim = args.pool.head_dim, kv_heads = args.pool.kv_heads;
    float key[kMaxHeadDim] = {}, value[kMaxHeadDim] = {};  // zero behind the head
    // Neighbours of a prompt share the lines of a tile's keys: two threads that write them in turn take them from each
    // other with every token. The tokens of a decode step lie in tiles of their own.
    const int64_t chunk = args.tokens >= 4 * kTile ? 2 * kTile : 2;
    int64_t begin, end;
    while (share.take(chunk, args.tokens, begin, end)) {
        for (int64_t t = begin; t < end; ++t) {
            const float* qk = args.qk + t * args.qk_token_stride;
            const float* cosines = args.cosines == nullptr ? nullptr : args.cosines + t * dim;
            const float* sines = args.sines == nullptr ? nullptr : args.sines + t * dim;
            for (int64_t h = 0; h < args.heads; ++h)
                rotate(qk + h * args.qk_head_stride, cosines, sines, args.scale, dim, args.q + (t * args.heads + h) * dim);
            for (int64_t h = 0; h < kv_heads; ++h) {
                rotate(qk + (args.heads + h) * args.qk_head_stride, cosines, sines, 1.0f, dim, key);
                std::memcpy(value, args.v + t * args.v_token_stride + h * args.v_head_stride,
                            static_cast<size_t>(dim) * sizeof(float));
                write_entry<type, Stored>(args, t, h, key, value);
                if (args.arrived != nullptr) args.arrived[t * kv_heads + h] = 0;
            }
        }
    }
}

}  // namespace

namespace PENSTOCK_ISA {

void write_float32(const WriteArgs& args, Share share) { write_tokens<KvType::float32, float>(args, share); }
void write_bfloat16(const WriteArgs& args, Share share) { write_tokens<KvType::bfloat16, uint16_t>(args, share); }
void write_int8(const WriteArgs& args, Share share) { write_tokens<KvType::int8, int8_t>(args, share); }

}  // namespace PENSTOCK_ISA
}  // namespace penstock::attention
