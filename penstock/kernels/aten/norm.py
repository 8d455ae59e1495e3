"""Norms in torch calls. Knows no model."""

from __future__ import annotations

import torch
from torch.nn import functional


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See kernels.reference.norm.rms_norm. The casts cost nothing in float32; mixed types have no fused path."""
    if weight.ndim == 1:
        return functional.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
    return functional.rms_norm(x.float(), weight.shape[-1:], None, eps).mul_(weight).to(x.dtype)
