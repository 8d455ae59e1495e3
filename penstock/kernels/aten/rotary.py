"""Rotary position embedding in torch calls. Knows no scaling variant."""

from __future__ import annotations

import torch


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """See kernels.reference.rotary.rotary. Three dispatches; the float32 tables promote 16-bit inputs."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def rotary_tables(
    positions: torch.Tensor, frequencies: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See kernels.reference.rotary.rotary_tables. Five dispatches."""
    angles = positions[:, None, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if temperature != 1.0:
        cos, sin = cos * temperature, sin * temperature
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
