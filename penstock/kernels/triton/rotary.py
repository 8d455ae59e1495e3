"""Rotary position embedding in Triton. Knows no scaling variant."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import AotCase
from penstock.kernels.triton.layout import check_rows, check_vectors

PROGRAM_PAIRS = 512
PROGRAM_ANGLES = 128


@triton.jit(do_not_specialize=["rows"])
def _rotary_kernel(
    x, cos, sin, out, rows, token_stride, head_stride, cos_stride, sin_stride,
    HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    pair = tl.arange(0, BLOCK)[None, :]
    there = (row < rows)[:, None] & (pair < HALF)
    token, head = (row // HEADS).to(tl.int64), (row % HEADS).to(tl.int64)
    at = x + (token * token_stride + head * head_stride)[:, None] + pair
    first = tl.load(at, mask=there, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=there, other=0.0).to(tl.float32)
    # The second halves of the tables: the sines of the first are negative.
    cosine = tl.load(cos + (token * cos_stride)[:, None] + HALF + pair, mask=there, other=0.0)
    sine = tl.load(sin + (token * sin_stride)[:, None] + HALF + pair, mask=there, other=0.0)
    to = out + row.to(tl.int64)[:, None] * (2 * HALF) + pair
    tl.store(to, (first * cosine - second * sine).to(out.dtype.element_ty), mask=there)
    tl.store(to + HALF, (second * cosine + first * sine).to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["tokens", "temperature"])
def _rotary_tables_kernel(
    positions, frequencies, cos, sin, tokens, temperature,
    HALF: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    pair = tl.arange(0, BLOCK)[None, :]
    there = (token < tokens)[:, None] & (pair < HALF)
    position = tl.load(positions + token, mask=token < tokens, other=0).to(tl.float32)
    frequency = tl.load(frequencies + pair, mask=pair < HALF, other=0.0)
    # In float64, since the angle of a late position has lost its fraction of a turn to any shorter reduction.
    angles = (position[:, None] * frequency).to(tl.float64)
    cosine = tl.cos(angles).to(tl.float32) * temperature
    sine = tl.sin(angles).to(tl.float32) * temperature
    at = token.to(tl.int64)[:, None] * (2 * HALF) + pair
    tl.store(cos + at, cosine, mask=there)
    tl.store(cos + at + HALF, cosine, mask=there)
    tl.store(sin + at, -sine, mask=there)
    tl.store(sin + at + HALF, sine, mask=there)


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, num_warps: int = 2) -> torch.Tensor:
    """See ``reference.rotary``. x [tokens, heads, d] with contiguous heads; cos, sin float32 [tokens, 1, d]."""
    tokens, heads, head_dim = x.shape
    if cos.shape != (tokens, 1, head_dim) or sin.shape != cos.shape or head_dim % 2:
        raise ValueError(f"needs tables [{tokens}, 1, {head_dim}] of an even width, found {cos.shape} and {sin.shape}")
    for each in (x, cos, sin):
        check_rows(each)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        half = head_dim // 2
        block = triton.next_power_of_2(half)
        rows_each = max(1, PROGRAM_PAIRS // block)
        _rotary_kernel[(triton.cdiv(tokens * heads, rows_each),)](
            x, cos, sin, out, tokens * heads, x.stride(0), x.stride(1), cos.stride(0), sin.stride(0),
            HEADS=heads, HALF=half, ROWS=rows_each, BLOCK=block, num_warps=num_warps,
        )  # fmt: skip
    return out


def rotary_tables(
    positions: torch.Tensor, frequencies: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``reference.rotary_tables``. positions int64 [tokens], frequencies float32 [d / 2], both contiguous."""
    tokens, half = positions.shape[0], frequencies.shape[0]
    check_vectors(tokens, positions)
    check_vectors(half, frequencies)
    cos, sin = (torch.empty((tokens, 1, 2 * half), dtype=torch.float32, device=positions.device) for _ in range(2))
    if cos.numel():
        block = triton.next_power_of_2(half)
        tokens_each = max(1, PROGRAM_ANGLES // block)
        _rotary_tables_kernel[(triton.cdiv(tokens, tokens_each),)](
            positions, frequencies, cos, sin, tokens, float(temperature), HALF=half, TOKENS=tokens_each, BLOCK=block
        )
    return cos, sin


AOT = (
    AotCase(
        kernel=_rotary_kernel,
        signature={
            "x": "*bf16", "cos": "*fp32", "sin": "*fp32", "out": "*bf16", "rows": "i32", "token_stride": "i32",
            "head_stride": "i32", "cos_stride": "i32", "sin_stride": "i32",
        },
        constants={"HEADS": 40, "HALF": 64, "ROWS": 8, "BLOCK": 64},
        num_warps=2,
    ),
    AotCase(
        kernel=_rotary_tables_kernel,
        signature={
            "positions": "*i64", "frequencies": "*fp32", "cos": "*fp32", "sin": "*fp32", "tokens": "i32",
            "temperature": "fp32",
        },
        constants={"HALF": 64, "TOKENS": 2, "BLOCK": 64},
    ),
)  # fmt: skip
