#include "norm/norm.hpp"

#include "binding/binding.hpp"
#include "runtime/program.hpp"

namespace penstock {
namespace {

using quantize::QuantizedRows;

// Bytes that a call moves, roughly: what it reads and what it writes.
int64_t work_of(int64_t rows, int64_t size) { return rows * size * 4; }

QuantizedRows quantized_rows(Address codes, Address scales, Address zeros, Address sums) {
    return {as<int8_t>(codes), as<float>(scales), as<int8_t>(zeros), as<int32_t>(sums)};
}

}  // namespace

void bind_norm(nb::module_& module) {
    module.def("rms_norm", [](int isa, Address x, int64_t outer, int64_t inner, int64_t outer_stride,
                              int64_t inner_stride, int64_t size, Address weight, int64_t weight_stride, float eps,
                              Address out) {
        const norm::RmsNormArgs args{as<const float>(x), outer, inner, outer_stride, inner_stride, size,
                                     as<const float>(weight), weight_stride, eps, as<float>(out)};
        submit("rms_norm", norm::kRmsNorm[isa], args, work_of(outer * inner, size));
    });
    module.def("add_rms_norm", [](int isa, Address x, int64_t rows, int64_t size, int64_t stride, Address residual,
                                  int64_t residual_stride, Address sum, Address weight, float eps, Address out) {
        const norm::NormRowsArgs args{as<const float>(x),      rows, size, stride, as<const float>(residual),
                                      residual_stride,         as<float>(sum), as<const float>(weight), eps,
                                      as<float>(out),          {}};
        submit("add_rms_norm", norm::kAddRmsNorm[isa], args, work_of(rows, size));
    });
    module.def("rms_norm_quantized", [](int isa, Address x, int64_t rows, int64_t size, int64_t stride, Address weight,
                                        float eps, Address codes, Address scales, Address zeros, Address sums) {
        const norm::NormRowsArgs args{as<const float>(x), rows, size, stride, nullptr, 0, nullptr,
                                      as<const float>(weight), eps, nullptr,
                                      quantized_rows(codes, scales, zeros, sums)};
        submit("rms_norm_quantized", norm::kRmsNormQuantized[isa], args, work_of(rows, size));
    });
    module.def("add_rms_norm_quantized",
               [](int isa, Address x, int64_t rows, int64_t size, int64_t stride, Address residual,
                  int64_t residual_stride, Address sum, Address weight, float eps, Address codes, Address scales,
                  Address zeros, Address sums) {
                   const norm::NormRowsArgs args{as<const float>(x), rows, size, stride, as<const float>(residual),
                                                 residual_stride, as<float>(sum), as<const float>(weight), eps, nullptr,
                                                 quantized_rows(codes, scales, zeros, sums)};
                   submit("add_rms_norm_quantized", norm::kAddRmsNormQuantized[isa], args, work_of(rows, size));
               });
}

}  // namespace penstock
