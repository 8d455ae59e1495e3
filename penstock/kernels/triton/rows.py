"""Ops on whole rows that compute little, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import AotCase
from penstock.kernels.triton.layout import check_rows, check_vectors, matrix

BLOCK_COLUMNS = 1024


@triton.jit
def _gather_rows_kernel(x, rows, out, size, row_stride, BLOCK: tl.constexpr):
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    there = column < size
    source = tl.load(rows + row)
    tl.store(out + row * size + column, tl.load(x + source * row_stride + column, mask=there), mask=there)


@triton.jit
def _add_kernel(a, b, out, size, a_stride, b_stride, BLOCK: tl.constexpr):
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = column < size
    one = tl.load(a + row * a_stride + column, mask=there).to(tl.float32)
    other = tl.load(b + row * b_stride + column, mask=there).to(tl.float32)
    tl.store(out + row * size + column, (one + other).to(out.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["factor"])
def _scale_kernel(x, out, factor, size, row_stride, BLOCK: tl.constexpr):
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = column < size
    values = tl.load(x + row * row_stride + column, mask=there).to(tl.float32)
    tl.store(out + row * size + column, (values * factor).to(out.dtype.element_ty), mask=there)


def gather_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """See ``reference.gather_rows``. x [n, size] with contiguous rows, rows int64 contiguous: read when the kernel
    runs, and not checked."""
    if x.dim() != 2:
        raise ValueError(f"needs x [n, size], found {tuple(x.shape)}")
    check_rows(x)
    check_vectors(rows.numel(), rows)
    count, size = rows.shape[0], x.shape[1]
    out = torch.empty((count, size), dtype=x.dtype, device=x.device)
    if count and size:
        _gather_rows_kernel[(count * triton.cdiv(size, BLOCK_COLUMNS),)](
            x, rows, out, size, x.stride(0), BLOCK=BLOCK_COLUMNS
        )
    return out


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """See ``reference.add``. a, b [..., size] with rows at one distance."""
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"needs one shape and type, found {tuple(a.shape)} and {tuple(b.shape)}")
    p, q = (_flat(each, a.is_contiguous() and b.is_contiguous()) for each in (a, b))
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    if out.numel():
        rows, size = p.shape
        _add_kernel[(rows * triton.cdiv(size, BLOCK_COLUMNS),)](
            p, q, out, size, p.stride(0), q.stride(0), BLOCK=BLOCK_COLUMNS
        )
    return out


def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    """See ``reference.scale``. x [..., size] with rows at one distance."""
    p = _flat(x, x.is_contiguous())
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel():
        rows, size = p.shape
        _scale_kernel[(rows * triton.cdiv(size, BLOCK_COLUMNS),)](
            p, out, float(factor), size, p.stride(0), BLOCK=BLOCK_COLUMNS
        )
    return out


def _flat(tensor: torch.Tensor, whole: bool) -> torch.Tensor:
    """One row of everything where no element has to be skipped, else ``matrix``."""
    return tensor.view(1, -1) if whole else matrix(tensor)


AOT = (
    AotCase(
        kernel=_gather_rows_kernel,
        signature={"x": "*bf16", "rows": "*i64", "out": "*bf16", "size": "i32", "row_stride": "i32"},
        constants={"BLOCK": BLOCK_COLUMNS},
    ),
    AotCase(
        kernel=_add_kernel,
        signature={"a": "*bf16", "b": "*bf16", "out": "*bf16", "size": "i32", "a_stride": "i32", "b_stride": "i32"},
        constants={"BLOCK": BLOCK_COLUMNS},
    ),
    AotCase(
        kernel=_scale_kernel,
        signature={"x": "*bf16", "out": "*bf16", "factor": "fp32", "size": "i32", "row_stride": "i32"},
        constants={"BLOCK": BLOCK_COLUMNS},
    ),
)
