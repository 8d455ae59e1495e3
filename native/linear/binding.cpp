#include <nanobind/stl/tuple.h>

#include "binding/binding.hpp"
#include "linear/linear.hpp"
#include "linear_dense/linear_dense.hpp"
#include "runtime/program.hpp"

namespace penstock {
namespace {

using linear::Weight;

// (data, out_features, in_features, code_bits, group_size, scale_bits, has_min, zero_point)
using WeightTuple = std::tuple<Address, int64_t, int64_t, int32_t, int32_t, int32_t, bool, int32_t>;
// (codes, scales, zeros, sums, num_rows)
using RowsTuple = std::tuple<Address, Address, Address, Address, int64_t>;

Weight weight_of(const WeightTuple& tuple) {
    const auto& [data, out_features, in_features, code_bits, group_size, scale_bits, has_min, zero_point] = tuple;
    return {as<const uint8_t>(data), out_features, in_features, code_bits, group_size, scale_bits, has_min, zero_point};
}

linear::QuantizedRows rows_of(const RowsTuple& tuple) {
    const auto& [codes, scales, zeros, sums, num_rows] = tuple;
    return {as<const int8_t>(codes), as<const float>(scales), as<const int8_t>(zeros), as<const int32_t>(sums),
            num_rows};
}

}  // namespace

void bind_linear(nb::module_& module) {
    module.def("packed_bytes", [](const WeightTuple& weight) {
        const Weight w = weight_of(weight);
        return linear::num_tiles(w) * linear::tile_bytes(w);
    });
    module.attr("ARGMAX_CHUNK") = linear::kArgmaxChunk;
    module.def("pack_linear", [](int isa, Address codes, Address scales, Address mins, Address data,
                                 const WeightTuple& weight) {
        const linear::PackArgs args{as<const uint8_t>(codes), as<const void>(scales), as<const void>(mins),
                                    as<uint8_t>(data), weight_of(weight), linear::span_of(isa)};
        submit("pack_linear", linear::pack, args, args.weight.out_features * args.weight.in_features);
    });
    module.def("linear_quantized", [](int isa, const RowsTuple& x, const WeightTuple& weight, Address bias, Address out,
                                      int64_t out_stride) {
        const linear::LinearArgs args{rows_of(x), weight_of(weight), as<const float>(bias), as<float>(out), out_stride};
        const Weight& w = args.weight;
        submit("linear_quantized", linear::kLinear[isa], args, args.x.num_rows * w.out_features * w.in_features / 16);
    });
    module.def("linear_quantized_argmax", [](int isa, const RowsTuple& x, const WeightTuple& weight, Address values,
                                             Address ids, Address best_values, Address best_ids) {
        const linear::ArgmaxArgs args{rows_of(x), weight_of(weight), as<float>(values), as<int64_t>(ids)};
        const Weight& w = args.weight;
        const int64_t rows = args.x.num_rows;
        const int64_t chunks = (w.out_features + linear::kArgmaxChunk - 1) / linear::kArgmaxChunk;
        submit("linear_quantized_argmax", linear::kArgmax[isa], args, rows * w.out_features * w.in_features / 16);
        const linear_dense::MergeArgs merge{as<const float>(values), as<const int64_t>(ids), chunks, rows,
                                            as<float>(best_values), as<int64_t>(best_ids)};
        submit("merge", linear_dense::merge, merge, rows * chunks);
    });
    module.def("embedding_quantized", [](int isa, const WeightTuple& weight, Address ids, int64_t num_rows, float scale,
                                         Address out) {
        const linear::EmbeddingArgs args{weight_of(weight), as<const int64_t>(ids), num_rows, as<float>(out), scale,
                                         linear::span_of(isa)};
        submit("embedding_quantized", linear::embedding, args, num_rows * args.weight.in_features * 4);
    });
}

}  // namespace penstock
