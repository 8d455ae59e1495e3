"""Rotary position embedding in torch calls. Knows no scaling variant."""

from __future__ import annotations

import torch


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """See kernels.reference.rotary.rotary. Three dispatches; the float32 tables promote 16-bit inputs."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)
