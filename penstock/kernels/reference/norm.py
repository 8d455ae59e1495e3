"""Reference of the norms. Knows no implementation."""

from __future__ import annotations

import torch

from penstock.kernels.activations import QuantizedRows
from penstock.kernels.reference.quantize import quantize_rows


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension (Zhang and Sennrich 2019).

    x [..., n] of any float type; weight float32, [n] or broadcasting over the last dimensions of x, e.g. [heads, n].
    Computed in float32, returned in x's type.
    """
    values = x.to(torch.float32)
    mean_square = (values * values).sum(dim=-1, keepdim=True) / x.shape[-1]
    return (values / torch.sqrt(mean_square + eps) * weight.to(torch.float32)).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``sum = x + residual`` in their type, and its norm: answers (norm, sum). x, residual [rows, n]; weight [n]."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rms_norm_quantized(x: torch.Tensor, weight: torch.Tensor, eps: float) -> QuantizedRows:
    """The norm of x [rows, n], n a multiple of 32, as integers."""
    return quantize_rows(rms_norm(x.to(torch.float32), weight, eps))


def add_rms_norm_quantized(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[QuantizedRows, torch.Tensor]:
    """``add_rms_norm`` with the norm as integers: answers (norm, sum)."""
    total = x + residual
    return rms_norm_quantized(total, weight, eps), total
