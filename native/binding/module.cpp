#include "binding/binding.hpp"

NB_MODULE(_native, module) {
    using namespace penstock;
    module.doc() = "CPU kernels of Penstock. Imported by penstock.kernels alone.";
    bind_runtime(module);
    bind_attention(module);
    bind_linear_dense(module);
    bind_norm(module);
    bind_linear(module);
    bind_quantize(module);
    bind_activation(module);
    bind_rotary(module);
    bind_rows(module);
    bind_sampling(module);
    bind_ceilings(module);
}
