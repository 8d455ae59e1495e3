#include "rotary/rotary.hpp"

#include "binding/binding.hpp"
#include "runtime/program.hpp"

namespace penstock {

void bind_rotary(nb::module_& module) {
    module.def("rotary_tables", [](int isa, Address positions, int64_t tokens, Address frequencies, int64_t half,
                                   float temperature, Address cos, Address sin) {
        const rotary::TablesArgs args{as<const int64_t>(positions), tokens, as<const float>(frequencies), half,
                                      temperature, as<float>(cos), as<float>(sin)};
        submit("rotary_tables", rotary::kTables[isa], args, tokens * half * 32);
    });
    module.def("rotary", [](int isa, Address x, int64_t tokens, int64_t heads, int64_t half, int64_t token_stride,
                            int64_t head_stride, Address cos, Address sin, Address out) {
        const rotary::RotaryArgs args{as<const float>(x), tokens, heads, half, token_stride, head_stride,
                                      as<const float>(cos), as<const float>(sin), as<float>(out)};
        submit("rotary", rotary::kRotary[isa], args, tokens * heads * half * 8);
    });
}

}  // namespace penstock
