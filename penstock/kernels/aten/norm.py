"""Norms in torch calls. Knows no model."""

from __future__ import annotations

import torch
from torch.nn import functional

from penstock.kernels.activations import QuantizedRows
from penstock.kernels.aten.quantize import quantize_rows


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See kernels.reference.norm.rms_norm. The casts cost nothing in float32; mixed types have no fused path."""
    if weight.ndim == 1:
        return functional.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
    return functional.rms_norm(x.float(), weight.shape[-1:], None, eps).mul_(weight).to(x.dtype)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels.reference.norm.add_rms_norm."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rms_norm_quantized(x: torch.Tensor, weight: torch.Tensor, eps: float) -> QuantizedRows:
    """See kernels.reference.norm.rms_norm_quantized."""
    return quantize_rows(rms_norm(x.float(), weight, eps))


def add_rms_norm_quantized(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[QuantizedRows, torch.Tensor]:
    """See kernels.reference.norm.add_rms_norm_quantized."""
    total = x + residual
    return rms_norm_quantized(total, weight, eps), total
