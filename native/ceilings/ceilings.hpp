// The most that a machine gives: loops that do nothing but read, or nothing but multiply and add. What kernels achieve is
// compared with them (the roofline of Williams, Waterman and Patterson 2009). No result of theirs is of use.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/isa.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock::ceilings {

constexpr int64_t kSinkBytes = 64;  // per thread: where its results go, so that they have to be computed

// Reads all chunks `repeats` times. With `own`, thread i reads chunk i alone, as often as chunks come to it: what lies
// in its own cache.
struct ReadArgs {
    const std::byte* data;
    int64_t chunk_bytes;  // a multiple of 512
    int64_t chunks, repeats;
    bool own;
    std::byte* sink;
};

// Which products: float32, int8 summed in int32, bfloat16 summed in float32.
enum class Kind : int { f32 = 0, i8 = 1, bf16 = 2 };

// `items` times kRounds rounds on registers.
struct ArithmeticArgs {
    const std::byte* operands;  // two registers' worth, at least 128 bytes
    int64_t items;
    std::byte* sink;
};

constexpr int64_t kRounds = 1 << 14;

// Null kernel: the instruction set has no instruction of the kind.
struct Arithmetic {
    void (*kernel)(const ArithmeticArgs&, Share);
    int64_t operations;  // of one item; a multiplication and an addition are two
};

PENSTOCK_DECLARE_PER_ISA(void read(const ReadArgs&, Share))
PENSTOCK_DECLARE_PER_ISA_BF16(Arithmetic arithmetic(Kind))

inline const PerIsa<void (*)(const ReadArgs&, Share)> kRead = PENSTOCK_PER_ISA(read);
inline const PerIsa<Arithmetic (*)(Kind)> kArithmetic = PENSTOCK_PER_ISA_BF16(arithmetic);

}  // namespace penstock::ceilings
