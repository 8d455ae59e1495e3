// The instruction sets that kernels are compiled for, and a table with one kernel for each.
#pragma once

#include <stdexcept>

namespace penstock {

// Order and names are those of penstock.kernels.native.ISAS; the number crosses the binding.
enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2, neon = 3 };

// Kernels of one op. A place is null in a build for another architecture.
template <class Function>
struct PerIsa {
    Function baseline = nullptr;
    Function avx2 = nullptr;
    Function avx512 = nullptr;
    Function neon = nullptr;

    Function operator[](int isa) const {
        const Function places[] = {baseline, avx2, avx512, neon};
        if (isa < 0 || isa > 3 || places[isa] == nullptr)
            throw std::invalid_argument("this build of penstock._native has no kernel for the instruction set asked for");
        return places[isa];
    }
};

// PENSTOCK_PER_ISA(rms_norm) -> the table of `baseline::rms_norm`, `avx2::rms_norm`, ... that this build has.
#if defined(__x86_64__)
#define PENSTOCK_PER_ISA(function) {baseline::function, avx2::function, avx512::function, nullptr}
#define PENSTOCK_DECLARE_PER_ISA(declaration) \
    namespace baseline { declaration; }       \
    namespace avx2 { declaration; }           \
    namespace avx512 { declaration; }
#elif defined(__aarch64__)
#define PENSTOCK_PER_ISA(function) {baseline::function, nullptr, nullptr, neon::function}
#define PENSTOCK_DECLARE_PER_ISA(declaration) \
    namespace baseline { declaration; }       \
    namespace neon { declaration; }
#else
#define PENSTOCK_PER_ISA(function) {baseline::function, nullptr, nullptr, nullptr}
#define PENSTOCK_DECLARE_PER_ISA(declaration) \
    namespace baseline { declaration; }
#endif

}  // namespace penstock
