#include "activation/activation.hpp"

#include "binding/binding.hpp"
#include "runtime/program.hpp"

namespace penstock {
namespace {

using Table = PerIsa<void (*)(const activation::GatedArgs&, Share)>;

// An exponential costs about as much as the reading of ten floats from the cache.
int64_t work_of(int64_t rows, int64_t size) { return rows * size * 16; }

void bind_dense(nb::module_& module, const char* name, const Table& table) {
    module.def(name, [name, &table](int isa, Address gate_up, int64_t rows, int64_t size, int64_t stride, Address out) {
        const activation::GatedArgs args{as<const float>(gate_up), rows, size, stride, as<float>(out), {}};
        submit(name, table[isa], args, work_of(rows, size));
    });
}

void bind_quantized(nb::module_& module, const char* name, const Table& table) {
    module.def(name, [name, &table](int isa, Address gate_up, int64_t rows, int64_t size, int64_t stride, Address codes,
                                    Address scales, Address zeros, Address sums) {
        const activation::GatedArgs args{
            as<const float>(gate_up), rows, size, stride, nullptr,
            {as<int8_t>(codes), as<float>(scales), as<int8_t>(zeros), as<int32_t>(sums)}};
        submit(name, table[isa], args, work_of(rows, size));
    });
}

}  // namespace

void bind_activation(nb::module_& module) {
    bind_dense(module, "silu_and_mul", activation::kSiluAndMul);
    bind_dense(module, "gelu_and_mul", activation::kGeluAndMul);
    bind_quantized(module, "silu_and_mul_quantized", activation::kSiluAndMulQuantized);
    bind_quantized(module, "gelu_and_mul_quantized", activation::kGeluAndMulQuantized);
}

}  // namespace penstock
