// The instruction sets that kernels are compiled for, and a table with one kernel for each.
#pragma once

#include <stdexcept>

namespace penstock {

// Order and names are those of penstock.kernels.native.ISAS; the number crosses the binding.
enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2, neon = 3, avx512_bf16 = 4, neon_bf16 = 5 };
constexpr int kNumIsas = 6;
constexpr const char* kIsaNames[kNumIsas] = {"baseline", "avx2", "avx512", "neon", "avx512_bf16", "neon_bf16"};

// Kernels of one op. A place is null in a build for another architecture.
template <class Function>
struct PerIsa {
    Function baseline = nullptr;
    Function avx2 = nullptr;
    Function avx512 = nullptr;
    Function neon = nullptr;
    Function avx512_bf16 = nullptr;
    Function neon_bf16 = nullptr;

    // Null where this build has none.
    Function find(int isa) const {
        const Function places[kNumIsas] = {baseline, avx2, avx512, neon, avx512_bf16, neon_bf16};
        return isa < 0 || isa >= kNumIsas ? nullptr : places[isa];
    }

    Function operator[](int isa) const {
        const Function found = find(isa);
        if (found == nullptr)
            throw std::invalid_argument("this build of penstock._native has no kernel for the instruction set asked for");
        return found;
    }
};

// PENSTOCK_PER_ISA(rms_norm) -> the table of `baseline::rms_norm`, `avx2::rms_norm`, ... that this build has.
// Ops with kernels for the sets with bfloat16 dot products besides say PENSTOCK_PER_ISA_BF16.
#if defined(__x86_64__)
#define PENSTOCK_PER_ISA(function) {baseline::function, avx2::function, avx512::function, nullptr}
#define PENSTOCK_DECLARE_PER_ISA(declaration) \
    namespace baseline { declaration; }       \
    namespace avx2 { declaration; }           \
    namespace avx512 { declaration; }
#define PENSTOCK_PER_ISA_BF16(function) \
    {baseline::function, avx2::function, avx512::function, nullptr, avx512_bf16::function, nullptr}
#define PENSTOCK_DECLARE_PER_ISA_BF16(declaration) \
    PENSTOCK_DECLARE_PER_ISA(declaration)          \
    namespace avx512_bf16 { declaration; }
#elif defined(__aarch64__)
#define PENSTOCK_PER_ISA(function) {baseline::function, nullptr, nullptr, neon::function}
#define PENSTOCK_DECLARE_PER_ISA(declaration) \
    namespace baseline { declaration; }       \
    namespace neon { declaration; }
#define PENSTOCK_PER_ISA_BF16(function) \
    {baseline::function, nullptr, nullptr, neon::function, nullptr, neon_bf16::function}
#define PENSTOCK_DECLARE_PER_ISA_BF16(declaration) \
    PENSTOCK_DECLARE_PER_ISA(declaration)          \
    namespace neon_bf16 { declaration; }
#else
#define PENSTOCK_PER_ISA(function) {baseline::function, nullptr, nullptr, nullptr}
#define PENSTOCK_DECLARE_PER_ISA(declaration) \
    namespace baseline { declaration; }
#define PENSTOCK_PER_ISA_BF16(function) PENSTOCK_PER_ISA(function)
#define PENSTOCK_DECLARE_PER_ISA_BF16(declaration) PENSTOCK_DECLARE_PER_ISA(declaration)
#endif

}  // namespace penstock
