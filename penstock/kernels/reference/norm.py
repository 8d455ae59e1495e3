"""Reference of the norms. Knows no implementation."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension (Zhang and Sennrich 2019).

    x [..., n] of any float type; weight float32, [n] or broadcasting over the last dimensions of x, e.g. [heads, n].
    Computed in float32, returned in x's type.
    """
    values = x.to(torch.float32)
    mean_square = (values * values).sum(dim=-1, keepdim=True) / x.shape[-1]
    return (values / torch.sqrt(mean_square + eps) * weight.to(torch.float32)).to(x.dtype)
