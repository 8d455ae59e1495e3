// What the bindings of the ops share. They know no tensor: penstock.kernels.native checks types, shapes and strides and
// hands over addresses.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace penstock {

namespace nb = nanobind;

using Address = uintptr_t;

template <class T>
T* as(Address address) {
    return reinterpret_cast<T*>(address);
}

// One per folder of ops; module.cpp calls them all.
void bind_runtime(nb::module_& module);
void bind_attention(nb::module_& module);
void bind_linear_dense(nb::module_& module);
void bind_norm(nb::module_& module);
void bind_linear(nb::module_& module);
void bind_quantize(nb::module_& module);
void bind_activation(nb::module_& module);
void bind_rotary(nb::module_& module);
void bind_rows(nb::module_& module);
void bind_sampling(nb::module_& module);
void bind_ceilings(nb::module_& module);

}  // namespace penstock
