// The threshold that a cut keeps tokens from: a weighted selection by pivots, without a sort.
#pragma once

#include "simd/vec.hpp"

namespace penstock::sampling {
namespace {

// Integers that are ordered like the floats whose bits they are made of.
PENSTOCK_INLINE int32_t key_of(float value) {
    const int32_t bits = __builtin_bit_cast(int32_t, value);
    return bits >= 0 ? bits : bits ^ 0x7fffffff;
}

PENSTOCK_INLINE float value_of(int32_t key) {
    return __builtin_bit_cast(float, key >= 0 ? key : key ^ 0x7fffffff);
}

PENSTOCK_INLINE void find_range(const int32_t* keys, int64_t count, int32_t& low, int32_t& high) {
    low = high = keys[0];
    for (int64_t i = 1; i < count; ++i) {
        low = keys[i] < low ? keys[i] : low;
        high = keys[i] > high ? keys[i] : high;
    }
}

// What the entries at or above the pivot weigh, or how many they are.
template <bool kWeighted>
PENSTOCK_INLINE double weight_above(const int32_t* keys, const float* weights, int64_t count, int32_t pivot) {
    int64_t i = 0;
    double weight;
    if constexpr (kWeighted) {
        DoubleSum sum;
        for (; i + 16 <= count; i += 16)
            sum.add((f32x16)((load16(keys + i) >= broadcast(pivot)) & (i32x16)load16(weights + i)));
        weight = sum.total();
    } else {
        i32x16 lanes{};
        for (; i + 16 <= count; i += 16) lanes -= load16(keys + i) >= broadcast(pivot);
        weight = sum_lanes(lanes);
    }
    for (; i < count; ++i) weight += keys[i] < pivot ? 0.0 : kWeighted ? static_cast<double>(weights[i]) : 1.0;
    return weight;
}

// The largest key such that the entries at or above it weigh at least `target`; the smallest key when all together
// weigh less. `keys` and `weights` [count > 0] are used up. Not weighted: each entry counts 1.
//
// Bisection over the keys that are there: every pass halves the range of keys and keeps the undecided side, so there are
// at most 32, over fewer and fewer entries. Sums are in double precision, in an order that the entries alone decide.
template <bool kWeighted>
PENSTOCK_INLINE int32_t select_key(int32_t* keys, float* weights, int64_t count, double target) {
    double above = 0.0;  // weight of the entries that are known to be kept
    for (;;) {
        int32_t low, high;
        find_range(keys, count, low, high);
        if (low == high) return low;
        const int32_t pivot = static_cast<int32_t>(low + ((static_cast<int64_t>(high) - low) >> 1) + 1);
        const double weight = weight_above<kWeighted>(keys, weights, count, pivot);
        const bool below = above + weight < target;  // the threshold is below the pivot
        if (below) above += weight;
        int64_t left = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int32_t key = keys[i];
            keys[left] = key;
            if constexpr (kWeighted) weights[left] = weights[i];
            left += (key < pivot) == below;
        }
        count = left;
    }
}

}  // namespace
}  // namespace penstock::sampling
