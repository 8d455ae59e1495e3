#include "binding/binding.hpp"

NB_MODULE(_native, module) {
    using namespace penstock;
    module.doc() = "CPU kernels of Penstock. Imported by penstock.kernels alone.";
    bind_runtime(module);
    bind_linear_dense(module);
    bind_norm(module);
    bind_linear(module);
}
