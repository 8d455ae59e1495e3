"""Multiplications with a dense weight whose bits for a row of x follow from that row and the weight alone.

Every element of the result is one accumulator of a matrix unit that starts at zero and takes the products of all
columns, first to last, in steps of ``BLOCK_K``; columns behind the last are zeros. Columns are never divided among
programs or warps, so there is no sum of parts, which would need one division for every number of rows. Bias is added at
the end.

The tiling follows the number of rows, and the bits do not follow the tiling: it says how many such elements a program
has, never in which order one of them is summed. The weight is the left operand and the rows of x are the columns of the
right one, so that few rows leave the instruction as it is but for its width (Hopper: m64nNk16), and an element of the
result of a matrix instruction depends on its own row and column of the operands. The last is what no document promises:
tests/gpu/test_deterministic.py holds the device to it. (Why libraries are not so: He et al. 2025, "Defeating
nondeterminism in LLM inference".)

Knows no layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import RESERVED_BYTES, TARGETS, AotCase
from penstock.kernels.triton.card import device_sizes

BLOCK_K = 64
GROUPED_TILES = 8  # tiles of rows whose programs follow each other, so that they read weights at the same time


@dataclass(frozen=True, slots=True)
class InvariantTiling:
    """A program takes ``block_n`` rows of the weight and ``block_r`` rows of x, with up to ``stages`` blocks of columns
    on the way from memory, and ``per_sm`` such programs are to fit on a multiprocessor."""

    block_n: int
    block_r: int
    warps: int
    stages: int
    per_sm: int


# By the rows of x, rounded up to a power of two. Few rows wait for the weight: small tiles, many blocks on the way.
TILINGS: Mapping[int, InvariantTiling] = {
    16: InvariantTiling(64, 16, 4, 8, 2),
    32: InvariantTiling(64, 32, 4, 8, 2),
    64: InvariantTiling(64, 64, 4, 6, 2),
    128: InvariantTiling(64, 128, 4, 4, 2),
    256: InvariantTiling(128, 128, 8, 4, 1),
}
MANY_ROWS = InvariantTiling(128, 256, 8, 4, 1)


@triton.jit(do_not_specialize=["rows"])
def _invariant_kernel(
    x, weight, bias, out, rows, outs, columns, x_stride, weight_stride, out_stride,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, HAS_BIAS: tl.constexpr,
    GROUP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of the result. Places behind the last row of the weight repeat it: what they compute is not stored."""
    tiles_n, tiles_r = tl.cdiv(outs, BLOCK_N), tl.cdiv(rows, BLOCK_R)
    first_r = tl.program_id(0) // (GROUP * tiles_n) * GROUP
    in_group = tl.program_id(0) - first_r * tiles_n
    together = tl.minimum(tiles_r - first_r, GROUP)
    row = (first_r + in_group % together) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = in_group // together * BLOCK_N + tl.arange(0, BLOCK_N)
    in_block = tl.arange(0, BLOCK_K)
    x_places = x + row.to(tl.int64)[None, :] * x_stride + in_block[:, None]
    w_places = weight + tl.minimum(column, outs - 1).to(tl.int64)[:, None] * weight_stride + in_block[None, :]
    sums = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for start in tl.range(0, columns, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            w = tl.load(w_places + start)
            xs = tl.load(x_places + start, mask=(row < rows)[None, :], other=0.0)
        else:
            inside = start + in_block < columns
            w = tl.load(w_places + start, mask=inside[None, :], other=0.0)
            xs = tl.load(x_places + start, mask=inside[:, None] & (row < rows)[None, :], other=0.0)
        sums = tl.dot(w, xs, sums, input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(bias + tl.minimum(column, outs - 1)).to(tl.float32)[:, None]
    places = out + row.to(tl.int64)[None, :] * out_stride + column[:, None]
    tl.store(places, sums.to(out.dtype.element_ty), mask=(column < outs)[:, None] & (row < rows)[None, :])


def linear_invariant(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    *,
    tiling: InvariantTiling | None = None,
) -> torch.Tensor:
    """``x @ weight.T + bias``: x [rows, n], weight [m, n], bias [m], one 16-bit type (or float32 in the interpreter) ->
    [rows, m] in that type, summed in float32. ``out`` is where it goes, with contiguous columns. ``tiling`` is for
    measurements: bits do not depend on it."""
    rows, columns = x.shape
    outs = weight.shape[0]
    if weight.shape[1] != columns:
        raise ValueError(f"cannot multiply {tuple(x.shape)} with {tuple(weight.shape)}")
    one_type = x.dtype == weight.dtype == (bias if bias is not None else x).dtype
    if x.stride(1) != 1 or weight.stride(1) != 1 or not one_type:
        raise ValueError("rows must be contiguous and of one type")
    if out is None:
        out = torch.empty((rows, outs), dtype=x.dtype, device=x.device)
    elif out.shape != (rows, outs) or out.stride(1) != 1 or out.dtype != x.dtype:
        raise ValueError(f"the result is [{rows}, {outs}] {x.dtype} with contiguous columns, not {tuple(out.shape)}")
    if rows == 0:
        return out
    tiling = fitted(tiling or tiling_of(rows, outs, device_sizes(x.device)[0]), device_sizes(x.device)[1])
    tiles = triton.cdiv(outs, tiling.block_n) * triton.cdiv(rows, tiling.block_r)
    _invariant_kernel[(tiles,)](
        x, weight, x if bias is None else bias, out, rows, outs, columns, x.stride(0), weight.stride(0), out.stride(0),
        BLOCK_N=tiling.block_n, BLOCK_R=tiling.block_r, BLOCK_K=BLOCK_K, EVEN_K=columns % BLOCK_K == 0,
        HAS_BIAS=bias is not None, GROUP=GROUPED_TILES, STAGES=tiling.stages,
        num_warps=tiling.warps,
    )  # fmt: skip
    return out


def tiling_of(rows: int, outs: int, num_sms: int) -> InvariantTiling:
    """The largest tiles only where they are enough for all multiprocessors."""
    if rows > 128:
        large = triton.cdiv(outs, MANY_ROWS.block_n) * triton.cdiv(rows, MANY_ROWS.block_r)
        return MANY_ROWS if large >= num_sms else TILINGS[256]
    return TILINGS[max(16, 1 << (rows - 1).bit_length())]


def fitted(tiling: InvariantTiling, shared_bytes: int) -> InvariantTiling:
    """With as many stages as a multiprocessor with so much shared memory has room for."""
    own = shared_bytes // tiling.per_sm - RESERVED_BYTES
    stages = min(tiling.stages, own // (2 * BLOCK_K * (tiling.block_n + tiling.block_r)))
    return replace(tiling, stages=max(2, stages))


AOT: tuple[AotCase, ...] = tuple(
    AotCase(
        kernel=_invariant_kernel,
        signature={
            **dict.fromkeys(("x", "weight", "bias", "out"), "*bf16"),
            "rows": "i32",
            **dict.fromkeys(("outs", "columns", "x_stride", "weight_stride", "out_stride"), "i32:16"),
        },
        constants={
            "BLOCK_N": tiling.block_n,
            "BLOCK_R": tiling.block_r,
            "BLOCK_K": BLOCK_K,
            "EVEN_K": True,
            "HAS_BIAS": True,
            "GROUP": GROUPED_TILES,
            "STAGES": tiling.stages,
        },
        num_warps=tiling.warps,
        targets=(target.name,),
    )
    for target in TARGETS.values()
    for tiling in (fitted(each, target.processor_bytes) for each in (TILINGS[16], MANY_ROWS))
)
