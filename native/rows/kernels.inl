// Compiled once per instruction set: the including file defines PENSTOCK_ISA.
#include "rows/rows.hpp"
#include "simd/vec.hpp"

namespace penstock::rows::PENSTOCK_ISA {

void gather(const GatherArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(share.chunk_of(args.count), args.count, begin, end)) {
        for (int64_t i = begin; i < end; ++i)
            std::memcpy(args.out + i * args.size, args.x + args.rows[i] * args.stride,
                        static_cast<size_t>(args.size) * sizeof(float));
    }
}

void add(const AddArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(share.chunk_of(args.rows), args.rows, begin, end)) {
        for (int64_t row = begin; row < end; ++row) {
            const float *a = args.a + row * args.a_stride, *b = args.b + row * args.b_stride;
            float* out = args.out + row * args.size;
            for_columns(args.size, [=](auto columns) { columns.store(out, columns.load(a) + columns.load(b)); });
        }
    }
}

void scale(const ScaleArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(share.chunk_of(args.rows), args.rows, begin, end)) {
        for (int64_t row = begin; row < end; ++row) {
            const float* x = args.x + row * args.stride;
            float* out = args.out + row * args.size;
            for_columns(args.size, [=, &args](auto columns) { columns.store(out, columns.load(x) * args.factor); });
        }
    }
}

}  // namespace penstock::rows::PENSTOCK_ISA
