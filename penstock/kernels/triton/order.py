"""Floats as integers of the same order, for kernels that compare and search. Knows no op."""

from __future__ import annotations

import triton
import triton.language as tl

# Keys of minus infinity, of the least finite number and of infinity. A NaN's key is the largest integer.
NEVER = tl.constexpr(-2139095041)
LEAST = tl.constexpr(-2139095040)
INFINITE = tl.constexpr(2139095040)
BELOW_ALL = tl.constexpr(-2147483648)  # no float has it


@triton.jit
def key_of(values):
    """int32 keys of float32 values: both zeros have one, and so have all NaNs, which are above infinity."""
    bits = values.to(tl.int32, bitcast=True)
    keys = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = tl.where(values == 0.0, 0, keys)
    return tl.where(values == values, keys, 0x7FFFFFFF)


@triton.jit
def value_of(keys):
    """The float32 value of an int32 key."""
    return tl.where(keys < 0, keys ^ 0x7FFFFFFF, keys).to(tl.float32, bitcast=True)
