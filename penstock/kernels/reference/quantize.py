"""Reference of the quantization of activations. Knows no weight."""

from __future__ import annotations

import torch

from penstock.kernels.activations import BLOCK, QuantizedRows

# Blocks whose largest magnitude is below this are taken as zeros: the reciprocal of their scale could overflow.
SMALLEST = 2.0**-100


def quantize_rows(x: torch.Tensor) -> QuantizedRows:
    """int8 codes per block of 32 columns: scale = max|x| / 127, code = x * (127 / max|x|) rounded to nearest even.

    x float32 [rows, n], n a multiple of 32. Codes lie in -127 to 127. The dynamic quantization of LLM.int8() (Dettmers
    et al. 2022), in blocks instead of whole rows.
    """
    blocks = x.to(torch.float32).reshape(x.shape[0], -1, BLOCK)
    largest = blocks.abs().amax(dim=-1, keepdim=True)  # NaN when one of them is NaN
    largest = torch.where(largest < SMALLEST, 0.0, largest)
    usable = torch.isfinite(largest) & (largest > 0)
    inverse = torch.where(usable, 127.0 / largest, 0.0)
    # The product is rounded once, to an integer: float64 holds it exactly.
    codes = torch.where(usable, (blocks.to(torch.float64) * inverse.to(torch.float64)).round(), 0.0).to(torch.int8)
    sums = codes.sum(dim=-1, dtype=torch.int32)
    return QuantizedRows(codes.reshape(x.shape), (largest / 127.0).squeeze(-1), sums)
