"""Float8 e4m3 values and their bytes: what kernels that store or read them share. Knows no kernel.

Half a dozen instructions of integers do what devices without float8, and the interpreter, have no cast for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.card import capability_of, multiplies_float8

LARGEST = tl.constexpr(448.0)


def has_float8(device: torch.device) -> bool:
    """Whether the device's matrix units multiply it."""
    return multiplies_float8(capability_of(device))


@triton.jit
def widened(codes, dtype: tl.constexpr, HOW: tl.constexpr):
    """Float8 e4m3 values in ``dtype``, exactly. HOW is "cast" of float8 values; or of their bytes "bits", which every
    device can, or "asm", the same for four at once: exponent and mantissa are moved to their places and the difference
    of the exponents' biases is multiplied in. The bytes of NaN, which e4m3 has two of, become 480."""
    if HOW == "cast":
        values = codes.to(dtype)
    elif HOW == "asm":
        tl.static_assert(dtype == tl.bfloat16)
        values = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 low, high, size, factor, zero;
            mov.b32 factor, 0x7B807B80;
            mov.b32 zero, 0x80008000;
            prmt.b32 low, $2, 0, 0x1404;
            prmt.b32 high, $2, 0, 0x3424;
            shr.u32 size, low, 4;
            and.b32 size, size, 0x07F007F0;
            lop3.b32 low, low, 0x80008000, size, 0xEA;
            fma.rn.bf16x2 $0, low, factor, zero;
            shr.u32 size, high, 4;
            and.b32 size, size, 0x07F007F0;
            lop3.b32 high, high, 0x80008000, size, 0xEA;
            fma.rn.bf16x2 $1, high, factor, zero;
            }
            """,
            "=r,=r,r",
            [codes],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
    elif dtype == tl.float32:
        wide = codes.to(tl.int32)
        values = (((wide & 0x80) << 24) | ((wide & 0x7F) << 20)).to(tl.float32, bitcast=True) * 1.329227995784916e36
    elif dtype == tl.bfloat16:
        short = codes.to(tl.int16)
        values = (((short & 0x80) << 8) | ((short & 0x7F) << 4)).to(tl.bfloat16, bitcast=True) * 1.329227995784916e36
    else:
        short = codes.to(tl.int16)
        values = (((short & 0x80) << 8) | ((short & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
    return values


@triton.jit
def bytes_of(values, HOW: tl.constexpr):
    """float32 in [-448, 448] -> the bytes of the nearest e4m3 values, even ones of two that are as near. HOW is "cast",
    or "bits", which every device can."""
    if HOW == "cast":
        codes = values.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        size = tl.abs(values)
        bits = size.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        # At 2^14 float32 has steps of 2^-9, as e4m3 has below 2^-6.
        small = (size + 16384.0).to(tl.int32, bitcast=True) & 0xF
        sign = (values.to(tl.int32, bitcast=True) >> 24) & 0x80
        codes = (tl.where(size < 0.015625, small, normal) | sign).to(tl.uint8)
    return codes


@triton.jit
def entries_as(entries, dtype: tl.constexpr, HOW: tl.constexpr):
    """What a cache holds in ``dtype``. HOW is "" where it holds numbers, or says how float8 bytes become values, as
    ``widened`` has it; those of NaN become NaN."""
    if HOW == "":
        return entries.to(dtype)
    elif HOW == "cast":
        return widened(entries.to(tl.float8e4nv, bitcast=True), dtype, HOW)
    else:
        return tl.where((entries & 0x7F) == 0x7F, float("nan"), widened(entries, dtype, HOW)).to(dtype)


@triton.jit
def as_entries(values, factor, dtype: tl.constexpr, HOW: tl.constexpr):
    """What a cache whose elements are of ``dtype`` holds of ``values``. HOW is "" where it holds numbers, or says how
    the values, times ``factor`` and cut at +-448, become float8 bytes, as ``bytes_of`` has it; NaN stays NaN."""
    if HOW == "":
        return values.to(dtype)
    else:
        scaled = values.to(tl.float32) * factor
        cut = tl.where(scaled > LARGEST, LARGEST, tl.where(scaled < -LARGEST, -LARGEST, scaled))
        return tl.where(scaled != scaled, 0x7F, bytes_of(cut, HOW)).to(tl.uint8)
