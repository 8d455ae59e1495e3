"""RMS norm layers. The op is chosen by the oracle; weights stay in float32, they are small."""

from __future__ import annotations

from typing import Protocol

import torch

from penstock.layers.parameter import DenseParameter, Layer
from penstock.layers.parts import LayerParts, layer_op
from penstock.quantization.linear import InputFormat, LinearInput


class Fed(Protocol):
    """Whatever a norm's result goes into: a linear layer or an LM head."""

    @property
    def input_format(self) -> InputFormat: ...


class RmsNorm(Layer):
    """RMS norm over the last dimension, weight [size]. What a family adds to the weight is a fold of the loader."""

    def __init__(self, size: int, eps: float, parts: LayerParts) -> None:
        self.weight = DenseParameter((size,), torch.float32, fill=1.0, device=parts.device)
        self._eps = eps
        self._norm = layer_op("rms_norm", parts)
        self._norm_for = {
            InputFormat.TENSOR: self._norm,
            InputFormat.QUANTIZED: layer_op("rms_norm_quantized", parts),
        }
        self._add_norm_for = {
            InputFormat.TENSOR: layer_op("add_rms_norm", parts),
            InputFormat.QUANTIZED: layer_op("add_rms_norm_quantized", parts),
        }

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self._norm(x, self.weight.data, self._eps)
        return normed

    def feed(self, x: torch.Tensor, feeds: Fed) -> LinearInput:
        """The norm of x in the format that ``feeds`` multiplies with."""
        normed: LinearInput = self._norm_for[feeds.input_format](x, self.weight.data, self._eps)
        return normed

    def add(self, delta: torch.Tensor | None, hidden: torch.Tensor, feeds: Fed) -> tuple[LinearInput, torch.Tensor]:
        """(norm of hidden + delta for ``feeds``, hidden + delta): the end of one branch and the start of the next in
        one pass over memory. Without a delta, as before the first branch, the sum is ``hidden``."""
        if delta is None:
            return self.feed(hidden, feeds), hidden
        normed, total = self._add_norm_for[feeds.input_format](delta, hidden, self.weight.data, self._eps)
        return normed, total


class HeadNorms(Layer):
    """The per-head norms of queries and keys in one op: x [tokens, num_heads + num_kv_heads, head_dim], queries first.

    Both weights [head_dim] fill one table [num_heads + num_kv_heads, head_dim].
    """

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, parts: LayerParts) -> None:
        self._weight = torch.ones(num_heads + num_kv_heads, head_dim, dtype=torch.float32, device=parts.device)
        self.query = DenseParameter((head_dim,), torch.float32, into=self._weight[:num_heads])
        self.key = DenseParameter((head_dim,), torch.float32, into=self._weight[num_heads:])
        self._eps = eps
        self._op = layer_op("rms_norm", parts)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self._op(x, self._weight, self._eps)
        return normed

    @property
    def arguments(self) -> tuple[torch.Tensor, float]:
        """The weights and epsilon, for whoever normalizes in passing."""
        return self._weight, self._eps
