#include "binding/binding.hpp"
#include "linear_dense/linear_dense.hpp"
#include "runtime/program.hpp"
#include "runtime/thread_pool.hpp"

namespace penstock {
namespace {

using namespace linear_dense;

// So few rows are arranged by every thread for itself: less than what it costs to wait for one another.
constexpr int64_t kArrangeAlone = 8;
constexpr int64_t kChunkTiles = 8;
constexpr int64_t kAlign = 64;

const Kernels& kernels_of(int isa, int format) {
    const Kernels* found = kKernels[isa](static_cast<Format>(format));
    if (found == nullptr) throw std::invalid_argument("no kernels of this instruction set for this type of weight");
    return *found;
}

int64_t chunks_of(const Kernels& k, int64_t outs) { return divide_up(divide_up(outs, k.layout.tile), kChunkTiles); }

// Arranged activations, then the candidates' ids, then their values.
struct Workspace {
    int64_t ids, values, bytes;

    Workspace(const Kernels& k, int64_t rows, int64_t cols, int64_t chunks) {
        const int64_t copies = rows <= kArrangeAlone ? ThreadPool::instance().size() : 1;
        ids = divide_up(copies * arranged_bytes(k, rows, cols), kAlign) * kAlign;
        values = ids + chunks * rows * static_cast<int64_t>(sizeof(int64_t));
        bytes = values + chunks * rows * static_cast<int64_t>(sizeof(float));
    }
};

// Arranges x where the threads do not each do it themselves.
LinearArgs begin_linear(const Kernels& k, const ArrangeArgs& x, Address weight, int64_t outs) {
    const bool alone = x.rows <= kArrangeAlone;
    if (!alone) submit("arrange", k.arrange, x, x.rows * x.cols * 4);
    return {x, alone, as<const void>(weight), nullptr, outs, nullptr, 0};
}

}  // namespace

void bind_linear_dense(nb::module_& module) {
    module.def("dense_packed_bytes", [](int isa, int format, int64_t outs, int64_t cols) {
        return packed_bytes(kernels_of(isa, format), static_cast<Format>(format), outs, cols);
    });
    module.def("dense_workspace", [](int isa, int format, int64_t rows, int64_t cols, int64_t argmax_outs) {
        const Kernels& k = kernels_of(isa, format);
        return Workspace(k, rows, cols, chunks_of(k, argmax_outs)).bytes;
    }, "Bytes that linear_dense needs beside its result, or dense_argmax when it is told how many outputs there are.");
    module.def("pack_dense", [](int isa, int format, Address values, int64_t outs, int64_t cols, int64_t row_stride,
                                Address out) {
        const PackArgs args{as<const void>(values), outs, cols, row_stride, as<void>(out)};
        submit("pack_dense", kernels_of(isa, format).pack, args, outs * cols * 2);
    });
    module.def("linear_dense", [](int isa, int format, Address x, int64_t rows, int64_t cols, int64_t row_stride,
                                  Address weight, Address bias, int64_t outs, Address workspace, Address out,
                                  int64_t out_stride) {
        const Kernels& k = kernels_of(isa, format);
        const ArrangeArgs arrange{as<const float>(x), rows, cols, row_stride, as<void>(workspace)};
        LinearArgs args = begin_linear(k, arrange, weight, outs);
        args.bias = as<const float>(bias);
        args.out = as<float>(out);
        args.out_stride = out_stride;
        submit("linear_dense", k.linear, args, rows * outs * cols);
    });
    module.def("dense_argmax", [](int isa, int format, Address x, int64_t rows, int64_t cols, int64_t row_stride,
                                  Address weight, int64_t outs, Address workspace, Address ids, Address values) {
        const Kernels& k = kernels_of(isa, format);
        const Workspace places(k, rows, cols, chunks_of(k, outs));
        const ArrangeArgs arrange{as<const float>(x), rows, cols, row_stride, as<void>(workspace)};
        ArgmaxArgs args{begin_linear(k, arrange, weight, outs), kChunkTiles, as<float>(workspace + places.values),
                        as<int64_t>(workspace + places.ids)};
        submit("dense_argmax", k.argmax, args, rows * outs * cols);
        const MergeArgs last{args.values, args.ids, chunks_of(k, outs), rows, as<float>(values), as<int64_t>(ids)};
        submit("merge_argmax", &merge, last, rows * last.chunks);
    });
    module.def("embed_dense", [](int isa, int format, Address weight, int64_t outs, int64_t cols, Address ids,
                                 int64_t rows, Address out) {
        const EmbedArgs args{as<const void>(weight), outs, cols, as<const int64_t>(ids), rows, as<float>(out)};
        submit("embed_dense", kernels_of(isa, format).embed, args, rows * cols * 4);
    });
}

}  // namespace penstock
