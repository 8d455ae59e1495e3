"""Reference of gated activations. The two halves come from one fused projection: gate first, then up."""

from __future__ import annotations

import math

import torch

from penstock.kernels.activations import QuantizedRows
from penstock.kernels.reference.quantize import quantize_rows


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` (SwiGLU, Shazeer 2020). gate_up [rows, 2n] -> [rows, n], in float32, in its own type."""
    gate, up = gate_up.to(torch.float32).chunk(2, dim=-1)
    return (gate / (1.0 + torch.exp(-gate)) * up).to(gate_up.dtype)


def gelu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``gelu(gate) * up`` with the tanh form of GELU (Hendrycks and Gimpel 2016). gate_up [rows, 2n] -> [rows, n]."""
    gate, up = gate_up.to(torch.float32).chunk(2, dim=-1)
    inner = math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3)
    return (0.5 * gate * (1.0 + torch.tanh(inner)) * up).to(gate_up.dtype)


def silu_and_mul_quantized(gate_up: torch.Tensor) -> QuantizedRows:
    """``silu_and_mul`` as integers; n is a multiple of 32."""
    return quantize_rows(silu_and_mul(gate_up.to(torch.float32)))


def gelu_and_mul_quantized(gate_up: torch.Tensor) -> QuantizedRows:
    """``gelu_and_mul`` as integers; n is a multiple of 32."""
    return quantize_rows(gelu_and_mul(gate_up.to(torch.float32)))
