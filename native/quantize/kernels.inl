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
            for (int64_t j = 0; j < blocks; ++j)
                quantize_block(load16(x + j * kBlock), load16(x + j * kBlock + 16), args.out, row * blocks + j);
        }
    }
}

}  // namespace penstock::quantize::PENSTOCK_ISA
