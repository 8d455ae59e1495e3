#include "binding/binding.hpp"
#include "rows/rows.hpp"
#include "runtime/program.hpp"

namespace penstock {

void bind_rows(nb::module_& module) {
    module.def("gather_rows",
               [](int isa, Address x, int64_t stride, int64_t size, Address indices, int64_t count, Address out) {
                   const rows::GatherArgs args{as<const float>(x), stride, size, as<const int64_t>(indices),
                                               count, as<float>(out)};
                   submit("gather_rows", rows::kGather[isa], args, count * size * 4);
               });
    module.def("add", [](int isa, Address a, int64_t a_stride, Address b, int64_t b_stride, int64_t count, int64_t size,
                         Address out) {
        const rows::AddArgs args{as<const float>(a), as<const float>(b), count, size, a_stride, b_stride, as<float>(out)};
        submit("add", rows::kAdd[isa], args, count * size * 4);
    });
    module.def("scale", [](int isa, Address x, int64_t stride, int64_t count, int64_t size, float factor, Address out) {
        const rows::ScaleArgs args{as<const float>(x), count, size, stride, factor, as<float>(out)};
        submit("scale", rows::kScale[isa], args, count * size * 4);
    });
}

}  // namespace penstock
