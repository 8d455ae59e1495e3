"""RMS norm on the extension."""

from __future__ import annotations

import torch

from penstock.kernels.native.extension import address, extension
from penstock.kernels.native.memory import empty


def rms_norm(isa: int, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See ``reference.rms_norm``. x float32 [..., size] with up to three dimensions and contiguous rows."""
    size = x.shape[-1]
    rows = x if x.dim() == 3 else x.reshape(-1, 1, size)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    out = empty(tuple(x.shape), torch.float32)
    per_head = weight.dim() > 1 and weight.shape[0] > 1
    extension().rms_norm(
        isa, address(rows, torch.float32), rows.shape[0], rows.shape[1], rows.stride(0), rows.stride(1), size,
        address(weight, torch.float32), weight.stride(0) if per_head else 0, eps, out.data_ptr(),
    )  # fmt: skip
    return out
