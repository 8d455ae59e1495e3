#include "binding/binding.hpp"
#include "norm/norm.hpp"
#include "runtime/program.hpp"

namespace penstock {

void bind_norm(nb::module_& module) {
    module.def("rms_norm", [](int isa, Address x, int64_t outer, int64_t inner, int64_t outer_stride,
                              int64_t inner_stride, int64_t size, Address weight, int64_t weight_stride, float eps,
                              Address out) {
        const norm::RmsNormArgs args{as<const float>(x), outer, inner, outer_stride, inner_stride, size,
                                     as<const float>(weight), weight_stride, eps, as<float>(out)};
        submit("rms_norm", norm::kRmsNorm[isa], args, outer * inner * size * 4);
    });
}

}  // namespace penstock
