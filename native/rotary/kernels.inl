// Compiled once per instruction set: the including file defines PENSTOCK_ISA.
#include "rotary/rotary.hpp"
#include "simd/vec.hpp"

namespace penstock::rotary {
namespace {

constexpr int64_t kLanes = 8 / kParts;  // doubles of a register
typedef double Doubles __attribute__((vector_size(64 / kParts)));
typedef int64_t Longs __attribute__((vector_size(64 / kParts)));
typedef float Floats __attribute__((vector_size(32 / kParts)));

// pi / 2 in three pieces of 33, 33 and 53 bits: products of the first two with a number of quarter turns below 2^20 are
// exact (Cody and Waite 1980).
constexpr double kHalfPi1 = 0x1.921fb544p+0, kHalfPi2 = 0x1.0b4611a6p-34, kHalfPi3 = 0x1.3198a2e037073p-69;
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52: the unit in the last place there is 1

// Cosine and sine of each angle, rounded once from about 1e-11: for angles below 2^20 at most 0.501 units in the last
// place from the truth. Horner's scheme over the Taylor series within an eighth of a turn.
PENSTOCK_INLINE void cos_sin(Floats angles, Floats& cos, Floats& sin) {
    const Doubles x = __builtin_convertvector(angles, Doubles);
    const Doubles shifted = x * kTwoOverPi + kRounder;
    const Doubles turns = shifted - kRounder;  // in quarters
    const Doubles r = ((x - turns * kHalfPi1) - turns * kHalfPi2) - turns * kHalfPi3;
    const Doubles square = r * r;
    Doubles s = square * (-1.0 / 39916800.0) + 1.0 / 362880.0;
    s = s * square - 1.0 / 5040.0;
    s = s * square + 1.0 / 120.0;
    s = s * square - 1.0 / 6.0;
    s = s * square * r + r;
    Doubles c = square * (1.0 / 479001600.0) - 1.0 / 3628800.0;
    c = c * square + 1.0 / 40320.0;
    c = c * square - 1.0 / 720.0;
    c = c * square + 1.0 / 24.0;
    c = c * square - 0.5;
    c = c * square + 1.0;
    const Longs quarter = (Longs)shifted;  // modulo 4, the number of quarter turns
    const Longs odd = -(quarter & 1);
    const Longs swapped_sin = ((Longs)c & odd) | ((Longs)s & ~odd), swapped_cos = ((Longs)s & odd) | ((Longs)c & ~odd);
    sin = __builtin_convertvector((Doubles)(swapped_sin ^ ((quarter & 2) << 62)), Floats);
    cos = __builtin_convertvector((Doubles)(swapped_cos ^ (((quarter + 1) & 2) << 62)), Floats);
}

PENSTOCK_INLINE void table_row(const TablesArgs& args, int64_t token) {
    const float position = static_cast<float>(args.positions[token]);
    float *cos_row = args.cos + token * 2 * args.half, *sin_row = args.sin + token * 2 * args.half;
    for (int64_t i = 0; i < args.half; i += kLanes) {
        const size_t bytes = sizeof(float) * static_cast<size_t>(args.half - i < kLanes ? args.half - i : kLanes);
        Floats frequency{}, cos, sin;
        if (bytes == sizeof frequency)
            std::memcpy(&frequency, args.frequencies + i, sizeof frequency);
        else
            std::memcpy(&frequency, args.frequencies + i, bytes);
        cos_sin(frequency * position, cos, sin);
        cos *= args.temperature;
        sin *= args.temperature;
        const Floats minus = -sin;
        const auto store = [=](float* to, Floats value) __attribute__((always_inline)) {
            if (bytes == sizeof value)
                std::memcpy(to, &value, sizeof value);
            else
                std::memcpy(to, &value, bytes);
        };
        store(cos_row + i, cos);
        store(cos_row + args.half + i, cos);
        store(sin_row + i, minus);
        store(sin_row + args.half + i, sin);
    }
}

PENSTOCK_INLINE void rotate_head(const float* x, const float* cos, const float* sin, float* out, int64_t half) {
    for_columns(half, [=](auto columns) __attribute__((always_inline)) {
        const f32x16 first = columns.load(x), second = columns.load(x + half);
        const f32x16 cosine = columns.load(cos + half), sine = columns.load(sin + half);
        columns.store(out, first * cosine - second * sine);
        columns.store(out + half, second * cosine + first * sine);
    });
}

}  // namespace

namespace PENSTOCK_ISA {

void tables(const TablesArgs& args, Share share) {
    int64_t begin, end;
    while (share.take(share.chunk_of(args.tokens), args.tokens, begin, end))
        for (int64_t token = begin; token < end; ++token) table_row(args, token);
}

void rotary(const RotaryArgs& args, Share share) {
    const int64_t size = 2 * args.half;
    int64_t begin, end;
    while (share.take(share.chunk_of(args.tokens), args.tokens, begin, end)) {
        for (int64_t i = begin; i < end; ++i) {
            for (int64_t j = 0; j < args.heads; ++j)
                rotate_head(args.x + i * args.token_stride + j * args.head_stride, args.cos + i * size,
                            args.sin + i * size, args.out + (i * args.heads + j) * size, args.half);
        }
    }
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock::rotary
