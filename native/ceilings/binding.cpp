#include "binding/binding.hpp"
#include "ceilings/ceilings.hpp"
#include "runtime/program.hpp"

namespace penstock {

void bind_ceilings(nb::module_& module) {
    module.attr("SINK_BYTES") = ceilings::kSinkBytes;
    module.def("read_bytes", [](int isa, Address data, int64_t chunk_bytes, int64_t chunks, int64_t repeats, bool own,
                                Address sink) {
        const ceilings::ReadArgs args{as<const std::byte>(data), chunk_bytes, chunks, repeats, own, as<std::byte>(sink)};
        submit("read_bytes", ceilings::kRead[isa], args, chunk_bytes * chunks * repeats);
    });
    module.def("multiply_add", [](int isa, int kind, Address operands, int64_t items, Address sink) {
        const ceilings::Arithmetic found = ceilings::kArithmetic[isa](static_cast<ceilings::Kind>(kind));
        if (found.kernel != nullptr)
            submit("multiply_add", found.kernel,
                   ceilings::ArithmeticArgs{as<const std::byte>(operands), items, as<std::byte>(sink)},
                   items * found.operations);
        return found.kernel != nullptr ? items * found.operations : 0;
    }, "Operations done; 0 when the instruction set has none of the kind.");
}

}  // namespace penstock
