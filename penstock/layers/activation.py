"""Gated feed-forward networks."""

from __future__ import annotations

import torch

from penstock.layers.linear import Linear
from penstock.layers.parameter import Layer
from penstock.layers.parts import LayerParts, layer_op
from penstock.quantization.linear import InputFormat, LinearInput

GATED_OPS = {"silu": "silu_and_mul", "gelu_tanh": "gelu_and_mul"}


class GatedMlp(Layer):
    """``down(act(gate(x)) * up(x))`` with gate and up fused. ``activation`` is a key of GATED_OPS."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation: str, parts: LayerParts, *, bias: bool = False
    ) -> None:
        self.gate_up = Linear(hidden_size, 2 * intermediate_size, parts, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, parts, bias=bias)
        op = GATED_OPS[activation]
        self._act_for = {
            InputFormat.TENSOR: layer_op(op, parts),
            InputFormat.QUANTIZED: layer_op(f"{op}_quantized", parts),
        }

    def __call__(self, x: LinearInput) -> torch.Tensor:
        act = self._act_for[self.down.input_format]
        return self.down(act(self.gate_up(x)))
