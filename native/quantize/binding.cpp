#include "binding/binding.hpp"
#include "quantize/quantize.hpp"
#include "runtime/program.hpp"

namespace penstock {

void bind_quantize(nb::module_& module) {
    module.def("quantize_rows", [](int isa, Address x, int64_t rows, int64_t size, int64_t stride, Address codes,
                                   Address scales, Address zeros, Address sums) {
        const quantize::QuantizeArgs args{
            as<const float>(x), rows, size, stride,
            {as<int8_t>(codes), as<float>(scales), as<int8_t>(zeros), as<int32_t>(sums)}};
        submit("quantize_rows", quantize::kQuantizeRows[isa], args, rows * size * 4);
    });
}

}  // namespace penstock
