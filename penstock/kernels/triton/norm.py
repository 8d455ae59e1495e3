"""RMS norm in Triton: rows of one size in one program each, short rows (heads) several in one. Knows no layer."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import AotCase
from penstock.kernels.triton.early import AOT_LAUNCHES, early_launch, launches_early, wait_for_the_kernel_before
from penstock.kernels.triton.layout import check_rows, matrix, warps_for

MAX_SIZE = 32768  # a program holds a whole row in registers
PROGRAM_ELEMENTS = 1024  # that short rows are gathered up to


@triton.jit(do_not_specialize=["rows"])
def _rms_norm_kernel(
    x, weight, out, rows, eps, token_stride, head_stride, weight_stride,
    HEADS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        wait_for_the_kernel_before()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    there = (row < rows)[:, None] & (column < SIZE)
    token, head = (row // HEADS).to(tl.int64), (row % HEADS).to(tl.int64)
    place = (token * token_stride + head * head_stride)[:, None]
    values = tl.load(x + place + column, mask=there, other=0.0).to(tl.float32)
    # Asked for before the sum, which waits for the whole row.
    factors = tl.load(weight + (head * weight_stride)[:, None] + column, mask=there, other=0.0)
    mean_square = tl.sum(values * values, axis=1) / SIZE
    normed = values * tl.rsqrt(mean_square + eps)[:, None] * factors
    tl.store(out + row.to(tl.int64)[:, None] * SIZE + column, normed.to(out.dtype.element_ty), mask=there)


@triton.jit
def _add_rms_norm_kernel(
    x, residual, weight, out, total, eps, x_stride, residual_stride, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    there = column < SIZE
    factors = tl.load(weight + column, mask=there, other=0.0)
    if PDL:
        wait_for_the_kernel_before()
    one = tl.load(x + row * x_stride + column, mask=there, other=0.0).to(tl.float32)
    other = tl.load(residual + row * residual_stride + column, mask=there, other=0.0).to(tl.float32)
    rounded = (one + other).to(total.dtype.element_ty)
    tl.store(total + row * SIZE + column, rounded, mask=there)
    values = rounded.to(tl.float32)
    mean_square = tl.sum(values * values, axis=0) / SIZE
    normed = values * tl.rsqrt(mean_square + eps) * factors
    tl.store(out + row * SIZE + column, normed.to(out.dtype.element_ty), mask=there)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, num_warps: int = 0) -> torch.Tensor:
    """See ``reference.rms_norm``. x [..., size] with contiguous rows: at one distance, or three dimensions; weight
    float32 [size], or [heads, size] for x [tokens, heads, size]."""
    size = x.shape[-1]
    view = x if x.dim() == 3 else matrix(x).unsqueeze(1)
    check_rows(view)
    per_head = weight.dim() > 1 and weight.shape[0] > 1
    _check_weight(weight, size, view.shape[1] if per_head else 1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = view.shape[0] * view.shape[1]
    if rows:
        block = triton.next_power_of_2(size)
        rows_each = max(1, PROGRAM_ELEMENTS // block)
        pdl = launches_early(x)
        _rms_norm_kernel[(triton.cdiv(rows, rows_each),)](
            view, weight, out, rows, eps, view.stride(0), view.stride(1), weight.stride(0) if per_head else 0,
            HEADS=view.shape[1], SIZE=size, ROWS=rows_each, BLOCK=block, PDL=pdl,
            num_warps=num_warps or warps_for(block * rows_each), **early_launch(pdl),
        )  # fmt: skip
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, num_warps: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``reference.add_rms_norm``. x, residual [rows, size] with contiguous rows, weight float32 [size]."""
    if x.dim() != 2 or x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(f"needs x and residual [rows, n] of one type, found {x.shape} and {residual.shape}")
    rows, size = x.shape
    check_rows(x)
    check_rows(residual)
    _check_weight(weight, size, 1)
    out, total = (torch.empty((rows, size), dtype=x.dtype, device=x.device) for _ in range(2))
    if rows:
        block = triton.next_power_of_2(size)
        pdl = launches_early(x)
        _add_rms_norm_kernel[(rows,)](
            x, residual, weight, out, total, eps, x.stride(0), residual.stride(0), SIZE=size, BLOCK=block, PDL=pdl,
            num_warps=num_warps or warps_for(block), **early_launch(pdl),
        )  # fmt: skip
    return out, total


def _check_weight(weight: torch.Tensor, size: int, heads: int) -> None:
    """Raises ValueError when the weight does not belong to ``heads`` rows of ``size``."""
    fits = weight.dtype is torch.float32 and weight.numel() == heads * size and weight.shape[-1] == size
    if not fits or size > MAX_SIZE:
        raise ValueError(f"needs a float32 weight of {heads} x {size} (at most {MAX_SIZE}), found {weight.shape}")
    check_rows(weight)


AOT = tuple(
  case for pdl, targets in AOT_LAUNCHES for case in (
    AotCase(
        kernel=_rms_norm_kernel,
        signature={
            "x": "*bf16", "weight": "*fp32", "out": "*bf16", "rows": "i32", "eps": "fp32", "token_stride": "i32",
            "head_stride": "i32", "weight_stride": "i32",
        },
        constants={"HEADS": 40, "SIZE": 128, "ROWS": 8, "BLOCK": 128, "PDL": pdl},
        targets=targets,
    ),
    AotCase(
        kernel=_add_rms_norm_kernel,
        signature={
            "x": "*bf16", "residual": "*bf16", "weight": "*fp32", "out": "*bf16", "total": "*bf16", "eps": "fp32",
            "x_stride": "i32", "residual_stride": "i32",
        },
        constants={"SIZE": 4096, "BLOCK": 4096, "PDL": pdl},
        num_warps=8,
        targets=targets,
    ),
  )
)  # fmt: skip
