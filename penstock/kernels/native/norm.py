"""RMS norm on the extension."""

from __future__ import annotations

import torch

from penstock.kernels.activations import QuantizedRows
from penstock.kernels.native.extension import address, extension, matrix, row_stride
from penstock.kernels.native.memory import empty
from penstock.kernels.native.quantize import addresses, empty_quantized


def rms_norm(isa: int, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See ``reference.rms_norm``. x float32 [..., size] with contiguous rows: at one distance, or three dimensions."""
    size = x.shape[-1]
    rows = x if x.dim() == 3 else matrix(x).unsqueeze(1)
    row_stride(rows)
    out = empty(tuple(x.shape), torch.float32)
    per_head = weight.dim() > 1 and weight.shape[0] > 1
    extension().rms_norm(
        isa, address(rows, torch.float32), rows.shape[0], rows.shape[1], rows.stride(0), rows.stride(1), size,
        address(weight, torch.float32), weight.stride(0) if per_head else 0, eps, out.data_ptr(),
    )  # fmt: skip
    return out


def add_rms_norm(
    isa: int, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``reference.add_rms_norm``. x, residual float32 [rows, size] with contiguous rows."""
    rows, size = _check(x, residual, weight)
    out, total = empty((rows, size), torch.float32), empty((rows, size), torch.float32)
    extension().add_rms_norm(
        isa, address(x, torch.float32), rows, size, row_stride(x), address(residual, torch.float32),
        row_stride(residual), total.data_ptr(), address(weight, torch.float32), eps, out.data_ptr(),
    )  # fmt: skip
    return out, total


def rms_norm_quantized(isa: int, x: torch.Tensor, weight: torch.Tensor, eps: float) -> QuantizedRows:
    """See ``reference.rms_norm_quantized``. x float32 [rows, size] with contiguous rows."""
    rows, size = _check(x, x, weight)
    out = empty_quantized(rows, size)
    extension().rms_norm_quantized(
        isa, address(x, torch.float32), rows, size, row_stride(x), address(weight, torch.float32), eps, *addresses(out)
    )
    return out


def add_rms_norm_quantized(
    isa: int, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[QuantizedRows, torch.Tensor]:
    """See ``reference.add_rms_norm_quantized``. x, residual float32 [rows, size] with contiguous rows."""
    rows, size = _check(x, residual, weight)
    out, total = empty_quantized(rows, size), empty((rows, size), torch.float32)
    extension().add_rms_norm_quantized(
        isa, address(x, torch.float32), rows, size, row_stride(x), address(residual, torch.float32),
        row_stride(residual), total.data_ptr(), address(weight, torch.float32), eps, *addresses(out),
    )  # fmt: skip
    return out, total


def _check(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[int, int]:
    """(rows, size). Raises ValueError when the shapes do not belong together."""
    if x.dim() != 2 or x.shape != residual.shape or weight.shape != x.shape[1:] or weight.stride(0) != 1:
        raise ValueError(
            f"needs x and residual [rows, n] and weight [n], found {tuple(x.shape)}, {tuple(residual.shape)} and "
            f"{tuple(weight.shape)}"
        )
    return x.shape[0], x.shape[1]
