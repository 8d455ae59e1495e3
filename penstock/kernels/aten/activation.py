"""Gated activations in torch calls. Knows no model."""

from __future__ import annotations

import torch
from torch.nn import functional


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See kernels.reference.activation.silu_and_mul; in 16 bits the product is taken of a rounded activation."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def gelu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See kernels.reference.activation.gelu_and_mul; in 16 bits the product is taken of a rounded activation."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh").mul_(up)
