"""Rotary position embedding on the extension."""

from __future__ import annotations

import torch

from penstock.kernels.native.extension import address, extension, row_stride
from penstock.kernels.native.memory import empty


def rotary_tables(
    isa: int, positions: torch.Tensor, frequencies: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``reference.rotary_tables``. positions int64 [tokens] and frequencies float32 [d / 2], contiguous. Angles up
    to 2^20 are reduced exactly."""
    if not positions.is_contiguous() or not frequencies.is_contiguous():
        raise ValueError("a native kernel needs contiguous positions and frequencies")
    tokens, half = positions.shape[0], frequencies.shape[0]
    cos, sin = empty((tokens, 1, 2 * half), torch.float32), empty((tokens, 1, 2 * half), torch.float32)
    extension().rotary_tables(
        isa, address(positions, torch.int64), tokens, address(frequencies, torch.float32), half, temperature,
        cos.data_ptr(), sin.data_ptr(),
    )  # fmt: skip
    return cos, sin


def rotary(isa: int, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """See ``reference.rotary``. x float32 [tokens, heads, d] with contiguous heads; contiguous tables."""
    row_stride(x)
    tokens, heads, size = x.shape
    if not (cos.is_contiguous() and sin.is_contiguous() and cos.shape == sin.shape == (tokens, 1, size)):
        raise ValueError(f"needs contiguous tables [{tokens}, 1, {size}], found {tuple(cos.shape)}, {tuple(sin.shape)}")
    out = empty((tokens, heads, size), torch.float32)
    extension().rotary(
        isa, address(x, torch.float32), tokens, heads, size // 2, x.stride(0), x.stride(1),
        address(cos, torch.float32), address(sin, torch.float32), out.data_ptr(),
    )  # fmt: skip
    return out
