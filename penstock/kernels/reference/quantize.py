"""Reference of the quantization of activations. Knows no weight."""

from __future__ import annotations

import torch

from penstock.kernels.activations import BLOCK, QuantizedRows

# Blocks whose values span less than this are taken as zeros: the reciprocal of their scale could overflow.
SMALLEST = 2.0**-100
STEPS = 254.0  # one less than int8 has, so that both ends may be rounded outwards
LOWEST = -128


def quantize_rows(x: torch.Tensor) -> QuantizedRows:
    """int8 codes per block of 32 columns: with low = min(0, min x) and high = max(0, max x),
    scale = (high - low) / 254, step(x) = x * (254 / (high - low)) rounded to nearest even, zero = -128 - step(low),
    code = step(x) + zero.

    x float32 [rows, n], n a multiple of 32. 0 is always exact. The dynamic asymmetric quantization of ZeroQuant (Yao et
    al. 2022), in blocks instead of whole rows.
    """
    blocks = x.to(torch.float32).reshape(x.shape[0], x.shape[1] // BLOCK, BLOCK)
    low = blocks.amin(dim=-1, keepdim=True).clamp(max=0.0)  # NaN when one of them is NaN
    high = blocks.amax(dim=-1, keepdim=True).clamp(min=0.0)
    span = high - low
    span = torch.where(span < SMALLEST, 0.0, span)
    usable = torch.isfinite(span) & (span > 0)
    inverse = torch.where(usable, STEPS / span, 0.0).to(torch.float64)
    # The product is rounded once, to an integer: float64 holds it exactly.
    steps = torch.where(usable, (blocks.to(torch.float64) * inverse).round(), 0.0).to(torch.int32)
    lowest = torch.where(usable, (low.to(torch.float64) * inverse).round(), 0.0).to(torch.int32)
    zeros = torch.where(usable, LOWEST - lowest, 0)
    return QuantizedRows(
        (steps + zeros).to(torch.int8).reshape(x.shape),
        (span / STEPS).squeeze(-1),
        zeros.squeeze(-1).to(torch.int8),
        steps.sum(dim=-1, dtype=torch.int32),
    )
