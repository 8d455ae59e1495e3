// Compiled once per instruction set: the including file defines PENSTOCK_ISA.
#include "quantize/block.hpp"
#include "quantize/quantize.hpp"

namespace penstock::quantize::PENSTOCK_ISA {

void quantize_rows(const QuantizeArgs& args, Share share) {
    const int64_t blocks = args.size / kBlock;
    int64_t begin, end;
    while (share.take(share.chunk_of(args.rows), args.rows, begin, end)) {
        for (int64_t row = begin; row < end; ++row) {
            const float* x = args.x + row * args.stride;
            quantize_row(args.size, args.out, row * blocks,
                         [=](int64_t column) __attribute__((always_inline)) { return load16(x + column); });
        }
    }
}

}  // namespace penstock::quantize::PENSTOCK_ISA
