// Compiled once per instruction set. Independent chains of one instruction each, enough of them to hide its latency.
#include <cstring>

#include "ceilings/ceilings.hpp"
#include "simd/vec.hpp"

// Makes the compiler believe that a register changed: what is computed from it cannot be moved out of a loop.
#if defined(__aarch64__)
#define PENSTOCK_CHANGED(value) asm volatile("" : "+w"(value))
#elif defined(__AVX512F__)  // "x" is the first sixteen registers alone
#define PENSTOCK_CHANGED(value) asm volatile("" : "+v"(value))
#elif defined(__x86_64__)
#define PENSTOCK_CHANGED(value) asm volatile("" : "+x"(value))
#else
#define PENSTOCK_CHANGED(value) asm volatile("" : "+m"(value))
#endif

namespace penstock::ceilings {
namespace {

// A function of its own: otherwise the compiler keeps some of the sums in memory.
template <class Op>
__attribute__((noinline)) void multiply_rounds(typename Op::Register a, typename Op::Register b,
                                               typename Op::Register* all) {
    typename Op::Register sums[Op::kChains];
    std::memcpy(&sums, all, sizeof sums);
    for (int64_t round = 0; round < kRounds; ++round) {
        PENSTOCK_CHANGED(a);
#pragma GCC unroll 16
        for (int i = 0; i < Op::kChains; ++i) {
            sums[i] = Op::step(sums[i], a, b);
            PENSTOCK_CHANGED(sums[i]);  // or it is copied from one register to another, and some to memory
        }
    }
    std::memcpy(all, &sums, sizeof sums);
}

// Op: a type of register, `kChains`, `kOperations` of a step, and step(sum, a, b) -> sum.
template <class Op>
void multiply(const ArithmeticArgs& args, Share share) {
    using Register = typename Op::Register;
    Register a, b, sums[Op::kChains];
    std::memcpy(&a, args.operands, sizeof a);
    std::memcpy(&b, args.operands + 64, sizeof b);
    for (Register& sum : sums) sum = b;
    int64_t begin, end;
    while (share.take(1, args.items, begin, end)) multiply_rounds<Op>(a, b, sums);
    for (const Register& sum : sums) {
        static_assert(sizeof sum <= kSinkBytes);
        Register seen = sum;
        PENSTOCK_CHANGED(seen);
        std::memcpy(args.sink + share.index * kSinkBytes, &seen, sizeof seen);
    }
}

template <class Op>
constexpr Arithmetic arithmetic_of() {
    return {&multiply<Op>, kRounds * Op::kChains * Op::kOperations};
}

struct Float32 {
    typedef float Register __attribute__((vector_size(64 / kParts)));
#if defined(__AVX512F__) || defined(__aarch64__)
    static constexpr int kChains = 16;
#else
    static constexpr int kChains = 12;  // of sixteen registers
#endif
    static constexpr int kOperations = 2 * sizeof(Register) / sizeof(float);

    static PENSTOCK_INLINE Register step(Register sum, Register a, Register b) { return sum * a + b; }
};

}  // namespace
}  // namespace penstock::ceilings
