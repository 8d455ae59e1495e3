// Paged attention: rotation of queries and keys with the write of keys and values to their blocks, then attention over
// the blocks with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022), for decode and prefill alike.
#pragma once

#include <cstdint>

#include "runtime/isa.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock::attention {

// A block is tiled: 16 consecutive tokens of one KV head lie together, keys as [head_dim][16] so that lanes are tokens
// where scores are computed, then values as [16][padded head_dim] so that lanes are elements where values are added up.
// Codes of eight bits have 16 scales of the keys and 16 of the values behind them, float32. Tiles of a KV head follow
// each other, then comes the next KV head.
constexpr int64_t kTile = 16;

// Keys are walked in chunks that begin at multiples of this many tokens, whoever asks. A chunk has a softmax of its own;
// the results of chunks are merged in ascending order. So a query's result does not depend on what is computed beside
// it or on how the work is divided.
constexpr int64_t kChunk = 64;

enum class KvType : int { float32 = 0, bfloat16 = 1, int8 = 2 };  // numbers of penstock.kernels.native.attention

constexpr int64_t kMaxHeadDim = 512;

constexpr int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

constexpr int64_t element_bytes(KvType type) { return type == KvType::float32 ? 4 : type == KvType::bfloat16 ? 2 : 1; }

constexpr int64_t tile_bytes(KvType type, int64_t head_dim) {
    return kTile * (head_dim + padded(head_dim)) * element_bytes(type) + (type == KvType::int8 ? 2 * kTile * 4 : 0);
}

// One layer's share of the pool: block i is at base + i * block_stride bytes.
struct KvPool {
    char* base;
    int64_t block_stride;
    int64_t block_tokens;  // a multiple of 16
    int64_t kv_heads, head_dim;

    // The tile of a KV head that holds the token at this place of a block.
    char* tile(KvType type, int64_t block, int64_t kv_head, int64_t offset) const {
        const int64_t number = kv_head * (block_tokens / kTile) + offset / kTile;
        return base + block * block_stride + number * tile_bytes(type, head_dim);
    }
};

// Row strides are in floats; elements of a head are contiguous. Token t writes to slot slots[t].
struct WriteArgs {
    const float* qk;  // [tokens, heads + kv_heads, head_dim]
    int64_t qk_token_stride, qk_head_stride;
    const float* v;  // [tokens, kv_heads, head_dim]
    int64_t v_token_stride, v_head_stride;
    const float *cosines, *sines;  // [tokens, head_dim] as the rotary op has them; null: nothing is rotated
    int64_t tokens, heads;
    float scale;          // of the scores, multiplied into the queries
    const int64_t* slots;  // [tokens]
    KvPool pool;
    float* q;          // [tokens, heads, head_dim], rotated and scaled
    int32_t* arrived;  // [tokens * kv_heads], set to zero for `attend`; null where that does not split
};

struct AttendArgs {
    const float* q;  // as `write` leaves it
    KvPool pool;
    const int64_t* query_start;  // [rows + 1]
    const int64_t* kv_lens;      // [rows]
    const int64_t* block_table;  // row r begins at r * table_stride
    int64_t table_stride;
    int64_t rows, tokens, heads;
    int64_t window;  // positions that a query sees, its own included; 0: all
    float soft_cap;      // 0: none
    const float* sinks;  // [heads], scores of a key with the value zero that every query of a head sees; null: none
    float* out;          // [tokens, heads, head_dim]

    // Where chunks of one query wait for each other, for steps of few queries: [tokens * kv_heads, max_chunks,
    // heads / kv_heads, padded head_dim + 16]. Null: every query is computed by one thread.
    float* parts;
    int32_t* arrived;
    int64_t max_chunks;
};

#define PENSTOCK_DECLARE_ATTENTION                        \
    void write_float32(const WriteArgs&, Share);          \
    void write_bfloat16(const WriteArgs&, Share);         \
    void write_int8(const WriteArgs&, Share);             \
    void attend_float32(const AttendArgs&, Share);        \
    void attend_bfloat16(const AttendArgs&, Share);       \
    void attend_int8(const AttendArgs&, Share)
PENSTOCK_DECLARE_PER_ISA(PENSTOCK_DECLARE_ATTENTION)
#undef PENSTOCK_DECLARE_ATTENTION

using Write = void (*)(const WriteArgs&, Share);
using Attend = void (*)(const AttendArgs&, Share);

// By KvType.
inline const PerIsa<Write> kWrite[] = {PENSTOCK_PER_ISA(write_float32), PENSTOCK_PER_ISA(write_bfloat16),
                                       PENSTOCK_PER_ISA(write_int8)};
inline const PerIsa<Attend> kAttend[] = {PENSTOCK_PER_ISA(attend_float32), PENSTOCK_PER_ISA(attend_bfloat16),
                                         PENSTOCK_PER_ISA(attend_int8)};

}  // namespace penstock::attention
