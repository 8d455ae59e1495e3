"""Gated activations in torch calls. Knows no model."""

from __future__ import annotations

import torch
from torch.nn import functional

from penstock.kernels.activations import QuantizedRows
from penstock.kernels.aten.quantize import quantize_rows


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See kernels.reference.activation.silu_and_mul; in 16 bits the product is taken of a rounded activation."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def gelu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See kernels.reference.activation.gelu_and_mul; in 16 bits the product is taken of a rounded activation."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh").mul_(up)


def silu_and_mul_quantized(gate_up: torch.Tensor) -> QuantizedRows:
    """See kernels.reference.activation.silu_and_mul_quantized."""
    return quantize_rows(silu_and_mul(gate_up.float()))


def gelu_and_mul_quantized(gate_up: torch.Tensor) -> QuantizedRows:
    """See kernels.reference.activation.gelu_and_mul_quantized."""
    return quantize_rows(gelu_and_mul(gate_up.float()))
