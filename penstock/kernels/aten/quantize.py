"""Quantization of activations in torch calls: what methods that run without the extension would read."""

from __future__ import annotations

import torch

from penstock.kernels.activations import QuantizedRows
from penstock.kernels.reference.quantize import quantize_rows as reference


def quantize_rows(x: torch.Tensor) -> QuantizedRows:
    """See kernels.reference.quantize.quantize_rows, which is torch calls over whole tensors already."""
    return reference(x)
