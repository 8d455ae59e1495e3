// Compiled once per instruction set: the including file defines PENSTOCK_ISA.
#include <cstring>

#include "ceilings/ceilings.hpp"
#include "simd/vec.hpp"

namespace penstock::ceilings {
namespace PENSTOCK_ISA {

void read(const ReadArgs& args, Share share) {
    constexpr int kUnroll = 8;
    i32x16 sums[kUnroll] = {};
    int64_t item, next;
    while (share.take(1, args.chunks * args.repeats, item, next)) {
        const std::byte* from = args.data + (args.own ? share.index : item % args.chunks) * args.chunk_bytes;
        for (const std::byte* end = from + args.chunk_bytes; from < end; from += kUnroll * 64) {
#pragma GCC unroll 8
            for (int i = 0; i < kUnroll; ++i) sums[i] ^= load16(reinterpret_cast<const int32_t*>(from + i * 64));
        }
    }
    for (int i = 1; i < kUnroll; ++i) sums[0] ^= sums[i];
    store16(reinterpret_cast<int32_t*>(args.sink + share.index * kSinkBytes), sums[0]);
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock::ceilings
