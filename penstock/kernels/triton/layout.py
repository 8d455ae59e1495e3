"""The layouts that kernels take, and what every launch is made of. Knows no op."""

from __future__ import annotations

import torch


def matrix(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor [..., n] as [rows, n] with contiguous rows, without a copy. Raises ValueError for layouts that have no
    such view."""
    rows = tensor
    if tensor.dim() != 2:
        try:
            rows = tensor.view(-1, tensor.shape[-1]) if tensor.numel() else tensor.new_empty((0, tensor.shape[-1]))
        except RuntimeError as error:
            raise ValueError(f"needs rows at one distance, found strides {tensor.stride()}") from error
    check_rows(rows)
    return rows


def check_rows(tensor: torch.Tensor) -> None:
    """Raises ValueError when the last dimension is not contiguous."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(f"needs contiguous rows, found strides {tensor.stride()}")


def check_vectors(rows: int, *vectors: torch.Tensor) -> None:
    """Raises ValueError when one is not a contiguous vector of ``rows`` entries."""
    if any(tuple(each.shape) != (rows,) or not each.is_contiguous() for each in vectors):
        raise ValueError(f"needs contiguous vectors of {rows} entries, found {[tuple(each.shape) for each in vectors]}")


def warps_for(elements: int) -> int:
    """Warps of a program that handles so many elements at once: up to 4096 two vector loads of bfloat16 a thread."""
    return min(16, max(1, elements // 256)) if elements <= 2048 else 8 if elements <= 4096 else 16
