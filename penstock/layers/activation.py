"""Gated feed-forward networks."""

from __future__ import annotations

import torch

from penstock.kernels.ops import OpSpec, choose_op
from penstock.layers.linear import Linear
from penstock.layers.parameter import Layer
from penstock.layers.parts import LayerParts

GATED_OPS = {"silu": "silu_and_mul", "gelu_tanh": "gelu_and_mul"}


class GatedMlp(Layer):
    """``down(act(gate(x)) * up(x))`` with gate and up fused. ``activation`` is a key of GATED_OPS."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: str, parts: LayerParts, *, bias: bool = False
    ) -> None:
        self.gate_up = Linear(hidden_size, 2 * intermediate_size, parts, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, parts, bias=bias)
        self._act, _ = choose_op(GATED_OPS[activation], OpSpec(dtype=parts.dtype_name, platform=parts.platform))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self._act(self.gate_up(x)))
