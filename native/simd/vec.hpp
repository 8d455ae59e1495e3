// Sixteen floats or integers as one value, on every instruction set: one AVX-512 register, two AVX2, four NEON or SSE
// ones. Kernels that need no special instruction are written once on these and compiled once per instruction set.
//
// Everything is in an unnamed namespace and forced inline: an inline function that two files compile with different
// flags would otherwise be merged by the linker, and the baseline build would run AVX-512 instructions.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define PENSTOCK_INLINE inline __attribute__((always_inline))
#define PENSTOCK_LANES_LOOP _Pragma("GCC unroll 4") for (int i = 0; i < kParts; ++i)

namespace penstock {
namespace {

#if defined(__AVX512F__)
constexpr int kParts = 1;
#elif defined(__AVX__)
constexpr int kParts = 2;
#else
constexpr int kParts = 4;
#endif

template <class T>
struct PartOf {
    typedef T type __attribute__((vector_size(64 / kParts)));
};

// A GCC vector of 64 bytes would say the same, but where a register is smaller GCC takes its comparisons and
// conversions lane by lane and its loads and stores through the stack. An array of registers it splits well.
template <class T>
struct Lanes {
    using Part = typename PartOf<T>::type;
    static constexpr int kWidth = 16 / kParts;  // lanes of a part

    Part part[kParts];

    // The same bits as lanes of another type.
    template <class U>
    PENSTOCK_INLINE explicit operator Lanes<U>() const {
        Lanes<U> result;
        PENSTOCK_LANES_LOOP result.part[i] = (typename Lanes<U>::Part)part[i];
        return result;
    }
};

using f32x16 = Lanes<float>;
using i32x16 = Lanes<int32_t>;
using u32x16 = Lanes<uint32_t>;

typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));

template <class T>
struct Same {
    using type = T;
};
template <class T>
using Scalar = typename Same<T>::type;  // not deduced, so that 2 means 2.0f beside floats

template <class T>
PENSTOCK_INLINE Lanes<T> broadcast(T value) {
    Lanes<T> result;
    PENSTOCK_LANES_LOOP result.part[i] = value - typename Lanes<T>::Part{};
    return result;
}

PENSTOCK_INLINE f32x16 splat(float value) { return broadcast(value); }

#define PENSTOCK_LANES_OPERATOR(op)                                                              \
    template <class T>                                                                           \
    PENSTOCK_INLINE Lanes<T> operator op(Lanes<T> a, Lanes<T> b) {                               \
        PENSTOCK_LANES_LOOP a.part[i] = a.part[i] op b.part[i];                                  \
        return a;                                                                                \
    }                                                                                            \
    template <class T>                                                                           \
    PENSTOCK_INLINE Lanes<T> operator op(Lanes<T> a, Scalar<T> b) { return a op broadcast<T>(b); } \
    template <class T>                                                                           \
    PENSTOCK_INLINE Lanes<T> operator op(Scalar<T> a, Lanes<T> b) { return broadcast<T>(a) op b; } \
    template <class T, class U>                                                                  \
    PENSTOCK_INLINE Lanes<T>& operator op##=(Lanes<T>& a, U b) { return a = a op b; }

PENSTOCK_LANES_OPERATOR(+)
PENSTOCK_LANES_OPERATOR(-)
PENSTOCK_LANES_OPERATOR(*)
PENSTOCK_LANES_OPERATOR(/)
PENSTOCK_LANES_OPERATOR(&)
PENSTOCK_LANES_OPERATOR(|)
PENSTOCK_LANES_OPERATOR(^)
#undef PENSTOCK_LANES_OPERATOR

// Masks: all bits of a lane are set where it is true.
#define PENSTOCK_LANES_COMPARISON(op)                                           \
    template <class T>                                                          \
    PENSTOCK_INLINE i32x16 operator op(Lanes<T> a, Lanes<T> b) {                \
        i32x16 mask;                                                            \
        PENSTOCK_LANES_LOOP mask.part[i] = (i32x16::Part)(a.part[i] op b.part[i]); \
        return mask;                                                            \
    }                                                                           \
    template <class T>                                                          \
    PENSTOCK_INLINE i32x16 operator op(Lanes<T> a, Scalar<T> b) { return a op broadcast<T>(b); }

PENSTOCK_LANES_COMPARISON(<)
PENSTOCK_LANES_COMPARISON(<=)
PENSTOCK_LANES_COMPARISON(>)
PENSTOCK_LANES_COMPARISON(>=)
PENSTOCK_LANES_COMPARISON(==)
PENSTOCK_LANES_COMPARISON(!=)
#undef PENSTOCK_LANES_COMPARISON

template <class T>
PENSTOCK_INLINE Lanes<T> operator-(Lanes<T> a) {
    PENSTOCK_LANES_LOOP a.part[i] = -a.part[i];
    return a;
}

template <class T>
PENSTOCK_INLINE Lanes<T> operator~(Lanes<T> a) {
    PENSTOCK_LANES_LOOP a.part[i] = ~a.part[i];
    return a;
}

template <class T>
PENSTOCK_INLINE Lanes<T> operator<<(Lanes<T> a, int bits) {
    PENSTOCK_LANES_LOOP a.part[i] = a.part[i] << bits;
    return a;
}

template <class T>
PENSTOCK_INLINE Lanes<T> operator>>(Lanes<T> a, int bits) {
    PENSTOCK_LANES_LOOP a.part[i] = a.part[i] >> bits;
    return a;
}

template <class T>
PENSTOCK_INLINE Lanes<T> load16(const T* from) {
    Lanes<T> value;
    PENSTOCK_LANES_LOOP std::memcpy(&value.part[i], from + i * Lanes<T>::kWidth, sizeof value.part[i]);
    return value;
}

template <class T>
PENSTOCK_INLINE void store16(T* to, Lanes<T> value) {
    PENSTOCK_LANES_LOOP std::memcpy(to + i * Lanes<T>::kWidth, &value.part[i], sizeof value.part[i]);
}

// The first n < 16 floats; the other lanes are 0.
PENSTOCK_INLINE f32x16 load_some(const float* from, int64_t n) {
#if defined(__AVX512F__)
    return {(f32x16::Part)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), from)};
#else
    float lanes[16] = {};
    std::memcpy(lanes, from, static_cast<size_t>(n) * sizeof(float));
    return load16(lanes);
#endif
}

PENSTOCK_INLINE void store_some(float* to, f32x16 value, int64_t n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1), (__m512)value.part[0]);
#else
    float lanes[16];
    store16(lanes, value);
    std::memcpy(to, lanes, static_cast<size_t>(n) * sizeof(float));
#endif
}

// Sixteen columns of a row from `at` on, or the last `count` < 16 of it.
template <bool kAll>
struct Columns {
    int64_t at, count;

    PENSTOCK_INLINE f32x16 load(const float* row) const {
        return kAll ? load16(row + at) : load_some(row + at, count);
    }
    PENSTOCK_INLINE void store(float* row, f32x16 value) const {
        if constexpr (kAll)
            store16(row + at, value);
        else
            store_some(row + at, value, count);
    }
};

// Calls use(columns) for all columns of a row, in order.
template <class Use>
PENSTOCK_INLINE void for_columns(int64_t size, Use use) {
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) use(Columns<true>{i, 16});
    if (i < size) use(Columns<false>{i, size - i});
}

// a * b + c, rounded once where the instruction set has it: `+` and `*` leave to the compiler which product it fuses.
PENSTOCK_INLINE f32x16 fma16(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
    return {(f32x16::Part)_mm512_fmadd_ps((__m512)a.part[0], (__m512)b.part[0], (__m512)c.part[0])};
#elif defined(__FMA__)
    PENSTOCK_LANES_LOOP c.part[i] =
        (f32x16::Part)_mm256_fmadd_ps((__m256)a.part[i], (__m256)b.part[i], (__m256)c.part[i]);
    return c;
#elif defined(__aarch64__)
    PENSTOCK_LANES_LOOP c.part[i] = (f32x16::Part)vfmaq_f32(c.part[i], a.part[i], b.part[i]);
    return c;
#else
    return a * b + c;
#endif
}

// 0 to 15.
PENSTOCK_INLINE i32x16 lane_numbers() {
    i32x16 numbers;
    PENSTOCK_LANES_LOOP for (int j = 0; j < i32x16::kWidth; ++j) numbers.part[i][j] = i * i32x16::kWidth + j;
    return numbers;
}

// b where either is a NaN.
template <class T>
PENSTOCK_INLINE Lanes<T> max16(Lanes<T> a, Lanes<T> b) {
    PENSTOCK_LANES_LOOP a.part[i] = a.part[i] > b.part[i] ? a.part[i] : b.part[i];
    return a;
}

template <class T>
PENSTOCK_INLINE Lanes<T> min16(Lanes<T> a, Lanes<T> b) {
    PENSTOCK_LANES_LOOP a.part[i] = a.part[i] < b.part[i] ? a.part[i] : b.part[i];
    return a;
}

// yes where the mask is set, no elsewhere.
template <class T>
PENSTOCK_INLINE Lanes<T> select16(i32x16 mask, Lanes<T> yes, Lanes<T> no) {
    return (Lanes<T>)((mask & (i32x16)yes) | (~mask & (i32x16)no));
}

PENSTOCK_INLINE f32x16 abs16(f32x16 a) { return (f32x16)((i32x16)a & 0x7fffffff); }

// Folds the sixteen lanes onto four: lane j is the combination of lanes j, j + 4, j + 8 and j + 12, those eight apart
// first. This is the one order in which lanes are ever combined. `Combine` works on vectors of four and of eight.
template <class Combine>
PENSTOCK_INLINE f32x4 fold_to_four(f32x16 value, Combine combine) {
#if defined(__AVX512F__)
    const __m512 all = (__m512)value.part[0];
    const __m256 half = (__m256)combine((f32x8)_mm512_castps512_ps256(all), (f32x8)_mm512_extractf32x8_ps(all, 1));
    return combine((f32x4)_mm256_castps256_ps128(half), (f32x4)_mm256_extractf128_ps(half, 1));
#elif defined(__AVX__)
    const __m256 half = (__m256)combine(value.part[0], value.part[1]);
    return combine((f32x4)_mm256_castps256_ps128(half), (f32x4)_mm256_extractf128_ps(half, 1));
#else
    return combine(combine(value.part[0], value.part[2]), combine(value.part[1], value.part[3]));
#endif
}

template <class Combine>
PENSTOCK_INLINE float fold_to_one(f32x16 value, Combine combine) {
    f32x4 lane = fold_to_four(value, combine);
    lane = combine(lane, __builtin_shufflevector(lane, lane, 2, 3, 0, 1));
    lane = combine(lane, __builtin_shufflevector(lane, lane, 1, 0, 3, 2));
    return lane[0];
}

struct Add {
    template <class V>
    PENSTOCK_INLINE V operator()(V a, V b) const {
        return a + b;
    }
};

struct Max {
    template <class V>
    PENSTOCK_INLINE V operator()(V a, V b) const {
        return a > b ? a : b;
    }
};

struct Min {
    template <class V>
    PENSTOCK_INLINE V operator()(V a, V b) const {
        return a < b ? a : b;
    }
};

struct AddIntegers {  // of lanes that hold the bits of integers
    PENSTOCK_INLINE f32x4 operator()(f32x4 a, f32x4 b) const { return (f32x4)((i32x4)a + (i32x4)b); }
#if defined(__AVX__)
    PENSTOCK_INLINE f32x8 operator()(f32x8 a, f32x8 b) const {
        typedef int32_t i32x8 __attribute__((vector_size(32)));
        return (f32x8)((i32x8)a + (i32x8)b);
    }
#endif
};

PENSTOCK_INLINE float sum_lanes(f32x16 value) { return fold_to_one(value, Add{}); }
PENSTOCK_INLINE float max_lanes(f32x16 value) { return fold_to_one(value, Max{}); }

PENSTOCK_INLINE int32_t sum_lanes(i32x16 value) {
    return __builtin_bit_cast(int32_t, fold_to_one((f32x16)value, AddIntegers{}));
}

// Lane k of the result is the fold of vector k: the same bits as four folds to one, in fewer steps.
template <class Combine>
PENSTOCK_INLINE f32x4 fold_each(f32x16 v0, f32x16 v1, f32x16 v2, f32x16 v3, Combine combine) {
    const f32x4 a = fold_to_four(v0, combine), b = fold_to_four(v1, combine);
    const f32x4 c = fold_to_four(v2, combine), d = fold_to_four(v3, combine);
    const f32x4 ab = combine(__builtin_shufflevector(a, b, 0, 4, 1, 5), __builtin_shufflevector(a, b, 2, 6, 3, 7));
    const f32x4 cd = combine(__builtin_shufflevector(c, d, 0, 4, 1, 5), __builtin_shufflevector(c, d, 2, 6, 3, 7));
    return combine(__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
}

// A sum of floats in double precision. Lanes are added in an order that the instruction set fixes.
struct DoubleSum {
    static constexpr int kWidth = 8 / kParts;
    typedef double Doubles __attribute__((vector_size(64 / kParts)));

    Doubles low{}, high{};

    PENSTOCK_INLINE void add(f32x16 value) {
#if defined(__AVX512F__)
        const __m512 all = (__m512)value.part[0];
        low += (Doubles)_mm512_cvtps_pd(_mm512_castps512_ps256(all));
        high += (Doubles)_mm512_cvtps_pd(_mm512_extractf32x8_ps(all, 1));
#else
        for (int i = 0; i < kParts; ++i) {
#if defined(__AVX__)
            low += (Doubles)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)value.part[i]));
            high += (Doubles)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)value.part[i], 1));
#elif defined(__SSE2__)
            const __m128 four = (__m128)value.part[i];
            low += (Doubles)_mm_cvtps_pd(four);
            high += (Doubles)_mm_cvtps_pd(_mm_movehl_ps(four, four));
#elif defined(__aarch64__)
            low += (Doubles)vcvt_f64_f32(vget_low_f32((float32x4_t)value.part[i]));
            high += (Doubles)vcvt_high_f64_f32((float32x4_t)value.part[i]);
#else
            low += Doubles{value.part[i][0], value.part[i][1]};
            high += Doubles{value.part[i][2], value.part[i][3]};
#endif
        }
#endif
    }

    PENSTOCK_INLINE double total() const {
        double lane[kWidth], sum = 0.0;
        const Doubles both = low + high;
        std::memcpy(lane, &both, sizeof both);
        for (int i = 0; i < kWidth; ++i) sum += lane[i];
        return sum;
    }
};

// Whether any lane of the mask is set.
PENSTOCK_INLINE bool any_lane(i32x16 mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask.part[0], (__m512i)mask.part[0]) != 0;
#elif defined(__AVX__)
    return _mm256_movemask_ps((__m256)(mask.part[0] | mask.part[1])) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps((__m128)((mask.part[0] | mask.part[1]) | (mask.part[2] | mask.part[3]))) != 0;
#elif defined(__aarch64__)
    return vmaxvq_u32((uint32x4_t)((mask.part[0] | mask.part[1]) | (mask.part[2] | mask.part[3]))) != 0;
#else
    const i32x4 lane = (mask.part[0] | mask.part[1]) | (mask.part[2] | mask.part[3]);
    return (lane[0] | lane[1] | lane[2] | lane[3]) != 0;
#endif
}

// Whether a or b has a NaN.
PENSTOCK_INLINE bool any_nan(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a.part[0], (__m512)b.part[0], _CMP_UNORD_Q) != 0;
#else
    return any_lane((a != a) | (b != b));
#endif
}

// The nearest integers, ties to even, of |values| below 2^22.
PENSTOCK_INLINE i32x16 round16(f32x16 value) {
    return (i32x16)(value + 12582912.0f) - 0x4b400000;  // 1.5 * 2^23: the unit in the last place there is 1
}

// Integers of -128 to 127, as bytes.
PENSTOCK_INLINE void store_i8(int8_t* to, i32x16 value) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)value.part[0]));
#elif defined(__AVX2__)
    const __m256i words = _mm256_packs_epi32((__m256i)value.part[0], (__m256i)value.part[1]);  // 0-3 8-11 | 4-7 12-15
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi32(bytes, _MM_SHUFFLE(3, 1, 2, 0)));
#elif defined(__SSE2__)
    const __m128i low = _mm_packs_epi32((__m128i)value.part[0], (__m128i)value.part[1]);
    const __m128i high = _mm_packs_epi32((__m128i)value.part[2], (__m128i)value.part[3]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(low, high));
#elif defined(__aarch64__)
    const int16x8_t low = vcombine_s16(vmovn_s32(value.part[0]), vmovn_s32(value.part[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(value.part[2]), vmovn_s32(value.part[3]));
    vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
#else
    for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(value.part[i / 4][i % 4]);
#endif
}

// Four integers of -128 to 127, as bytes.
PENSTOCK_INLINE void store_i8(int8_t* to, i32x4 value, int64_t count = 4) {
    int8_t bytes[4];
    for (int i = 0; i < 4; ++i) bytes[i] = static_cast<int8_t>(value[i]);
    std::memcpy(to, bytes, static_cast<size_t>(count));
}

// exp(x), relative error below 2e-7 (Cody and Waite's reduction, a polynomial of degree 6); 0 below -87, so that minus
// infinity gives exactly 0; x above 88 gives the value at 88. A NaN stays one.
PENSTOCK_INLINE f32x16 exp16(f32x16 x) {
    const i32x16 vanishes = x < -87.0f;
    x = max16(splat(-87.0f), min16(splat(88.0f), x));
    const f32x16 shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
    const f32x16 n = shifted - 12582912.0f;
    f32x16 r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    f32x16 p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const i32x16 exponent = ((i32x16)shifted - (0x4b400000 - 127)) << 23;
    const f32x16 result = p * (f32x16)exponent;
    return (f32x16)((i32x16)result & ~vanishes);
}

PENSTOCK_INLINE f32x16 widen_bf16(const uint16_t* from) {
#if defined(__AVX512F__)
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return {(f32x16::Part)_mm512_slli_epi32(wide, 16)};
#elif defined(__AVX2__)
    const __m128i* half = reinterpret_cast<const __m128i*>(from);
    return {{(f32x16::Part)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(half)), 16),
             (f32x16::Part)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(half + 1)), 16)}};
#elif defined(__SSE2__)
    const __m128i zero = _mm_setzero_si128();
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + 1);
    return {{(f32x16::Part)_mm_unpacklo_epi16(zero, low), (f32x16::Part)_mm_unpackhi_epi16(zero, low),
             (f32x16::Part)_mm_unpacklo_epi16(zero, high), (f32x16::Part)_mm_unpackhi_epi16(zero, high)}};
#elif defined(__aarch64__)
    const uint16x8_t low = vld1q_u16(from), high = vld1q_u16(from + 8);
    return {{(f32x16::Part)vshll_n_u16(vget_low_u16(low), 16), (f32x16::Part)vshll_high_n_u16(low, 16),
             (f32x16::Part)vshll_n_u16(vget_low_u16(high), 16), (f32x16::Part)vshll_high_n_u16(high, 16)}};
#else
    u32x16 wide;
    for (int i = 0; i < 16; ++i) wide.part[i / 4][i % 4] = static_cast<uint32_t>(from[i]) << 16;
    return (f32x16)wide;
#endif
}

PENSTOCK_INLINE f32x16 widen_i8(const int8_t* from) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {(f32x16::Part)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {{(f32x16::Part)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
             (f32x16::Part)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))}};
#elif defined(__aarch64__)
    const int8x16_t bytes = vld1q_s8(from);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return {{(f32x16::Part)vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
             (f32x16::Part)vcvtq_f32_s32(vmovl_high_s16(low)),
             (f32x16::Part)vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
             (f32x16::Part)vcvtq_f32_s32(vmovl_high_s16(high))}};
#else
    f32x16 wide;
    PENSTOCK_LANES_LOOP for (int j = 0; j < f32x16::kWidth; ++j) wide.part[i][j] = from[i * f32x16::kWidth + j];
    return wide;
#endif
}

// Round to nearest even. A NaN stays one.
PENSTOCK_INLINE void narrow_bf16(uint16_t* to, f32x16 value) {
    const i32x16 bits = (i32x16)value;
    const i32x16 rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const i32x16 half = select16(value == value, rounded, broadcast<int32_t>(0x7fc00000)) >> 16;  // sign-extended
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)half.part[0]));
#elif defined(__AVX2__)
    const __m256i words = _mm256_packs_epi32((__m256i)half.part[0], (__m256i)half.part[1]);  // 0-3 8-11 | 4-7 12-15
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0)));
#elif defined(__SSE2__)
    __m128i* halves = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(halves, _mm_packs_epi32((__m128i)half.part[0], (__m128i)half.part[1]));
    _mm_storeu_si128(halves + 1, _mm_packs_epi32((__m128i)half.part[2], (__m128i)half.part[3]));
#elif defined(__aarch64__)
    vst1q_u16(to, (uint16x8_t)vcombine_s16(vmovn_s32(half.part[0]), vmovn_s32(half.part[1])));
    vst1q_u16(to + 8, (uint16x8_t)vcombine_s16(vmovn_s32(half.part[2]), vmovn_s32(half.part[3])));
#else
    for (int i = 0; i < 16; ++i) to[i] = static_cast<uint16_t>(half.part[i / 4][i % 4]);
#endif
}

}  // namespace
}  // namespace penstock
