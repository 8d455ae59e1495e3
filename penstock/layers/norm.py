"""RMS norm layers. The op is chosen by the oracle; weights stay in float32, they are small."""

from __future__ import annotations

import torch

from penstock.kernels.ops import OpSpec, choose_op
from penstock.layers.parameter import DenseParameter, Layer
from penstock.layers.parts import LayerParts


class RmsNorm(Layer):
    """RMS norm over the last dimension, weight [size]. What a family adds to the weight is a fold of the loader."""

    def __init__(self, size: int, eps: float, parts: LayerParts) -> None:
        self.weight = DenseParameter((size,), torch.float32, fill=1.0)
        self._eps = eps
        self._op, _ = choose_op("rms_norm", OpSpec(dtype=parts.dtype_name, platform=parts.platform))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._op(x, self.weight.data, self._eps)


class HeadNorms(Layer):
    """The per-head norms of queries and keys in one op: x [tokens, num_heads + num_kv_heads, head_dim], queries first.

    Both weights [head_dim] fill one table [num_heads + num_kv_heads, head_dim].
    """

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, parts: LayerParts) -> None:
        self._weight = torch.ones(num_heads + num_kv_heads, head_dim, dtype=torch.float32)
        self.query = DenseParameter((head_dim,), torch.float32, into=self._weight[:num_heads])
        self.key = DenseParameter((head_dim,), torch.float32, into=self._weight[num_heads:])
        self._eps = eps
        self._op, _ = choose_op("rms_norm", OpSpec(dtype=parts.dtype_name, platform=parts.platform))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._op(x, self._weight, self._eps)
