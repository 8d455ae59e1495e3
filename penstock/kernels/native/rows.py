"""Ops on whole rows that compute little, on the extension."""

from __future__ import annotations

import torch

from penstock.kernels.native.extension import address, extension, matrix, row_stride
from penstock.kernels.native.memory import empty


def gather_rows(isa: int, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """See ``reference.gather_rows``. x float32 with contiguous rows, rows int64 contiguous: read when the kernel runs,
    and not checked."""
    if x.dim() != 2 or rows.dim() != 1 or not rows.is_contiguous():
        raise ValueError(f"needs x [n, size] and contiguous rows [m], found {tuple(x.shape)} and {tuple(rows.shape)}")
    count, size = rows.shape[0], x.shape[1]
    out = empty((count, size), torch.float32)
    extension().gather_rows(
        isa, address(x, torch.float32), row_stride(x), size, address(rows, torch.int64), count, out.data_ptr()
    )
    return out


def add(isa: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """See ``reference.add``. a, b float32 [..., size] with rows at one distance."""
    if a.shape != b.shape:
        raise ValueError(f"needs one shape, found {tuple(a.shape)} and {tuple(b.shape)}")
    p, q = matrix(a), matrix(b)
    rows, size = p.shape
    out = empty(tuple(a.shape), torch.float32)
    extension().add(
        isa, address(p, torch.float32), row_stride(p), address(q, torch.float32), row_stride(q), rows, size,
        out.data_ptr(),
    )  # fmt: skip
    return out


def scale(isa: int, x: torch.Tensor, factor: float) -> torch.Tensor:
    """See ``reference.scale``. x float32 [..., size] with rows at one distance."""
    p = matrix(x)
    rows, size = p.shape
    out = empty(tuple(x.shape), torch.float32)
    extension().scale(isa, address(p, torch.float32), row_stride(p), rows, size, factor, out.data_ptr())
    return out
