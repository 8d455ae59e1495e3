"""Reference of the ops on whole rows that compute little."""

from __future__ import annotations

import torch


def gather_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of x [n, size] by index, int64 [m] -> [m, size]. Indices lie in 0 to n - 1; a kernel does not check them."""
    return torch.stack([x[i] for i in rows.tolist()]) if len(rows) else x[:0]


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a + b`` of one shape and type."""
    return (a.to(torch.float32) + b.to(torch.float32)).to(a.dtype)


def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    """``x * factor``."""
    return (x.to(torch.float32) * factor).to(x.dtype)
