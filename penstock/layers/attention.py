"""Self-attention over paged KV. The step's metadata comes from the forward context; layers keep no step state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from penstock.attention.context import current_forward
from penstock.attention.contract import UNSCALED, AttentionSpec
from penstock.errors import UnsupportedModelError
from penstock.layers.linear import Linear
from penstock.layers.norm import HeadNorms
from penstock.layers.parameter import DenseParameter, Layer
from penstock.layers.parts import LayerParts
from penstock.layers.rotary import RopeTables
from penstock.quantization.linear import LinearInput
from penstock.quantization.schemes import WeightRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlace:
    """Where an attention layer stands: its layer number, its KV group and what the group asks of a backend."""

    layer: int
    group: str
    spec: AttentionSpec


class KvScales(DenseParameter):
    """What entries of a float8 cache are multiplied with, keys and values [2]. ``pair`` has them for the host; 1 until
    a checkpoint brings others. Raises UnsupportedModelError for what is no scale."""

    def __init__(self) -> None:
        super().__init__((2,), torch.float32, fill=1.0)
        self.pair = UNSCALED

    def load(self, records: Sequence[WeightRecord], /) -> None:
        super().load(records)
        keys, values = self.data.tolist()
        if not all(0.0 < scale < math.inf for scale in (keys, values)):
            raise UnsupportedModelError(
                f"Scales of keys and values must be above 0; the checkpoint has {keys}, {values}."
            )
        self.pair = (keys, values)


class SelfAttention(Layer):
    """Fused q, k, v; optional per-head norms, in the backend where it takes them; rotation and paged attention in the
    backend; output.

    ``head_norm_eps`` turns the norms of queries and keys on. ``scale`` multiplies the scores. With sinks in the place's
    spec there is a parameter ``sinks`` [num_heads], in float32 whatever the checkpoint stores. ``kv_scales`` are used
    where the cache is float8.
    """

    def __init__(
        self,
        hidden_size: int,
        place: AttentionPlace,
        parts: LayerParts,
        *,
        scale: float,
        qkv_bias: bool = False,
        output_bias: bool = False,
        head_norm_eps: float | None = None,
    ) -> None:
        spec = place.spec
        self._layer, self._group, self._scale = place.layer, place.group, scale
        self._heads, self._kv_heads, self._head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self._backend = parts.attention_backend(spec)
        width = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        self.qkv = Linear(hidden_size, width, parts, bias=qkv_bias)
        self.output = Linear(spec.num_heads * spec.head_dim, hidden_size, parts, bias=output_bias)
        self.kv_scales = KvScales()
        self.sinks: DenseParameter | None = None
        if spec.sinks:
            self.sinks = DenseParameter((spec.num_heads,), torch.float32, device=parts.device)
        self.norms: HeadNorms | None = None
        if head_norm_eps is not None:
            self.norms = HeadNorms(spec.num_heads, spec.num_kv_heads, spec.head_dim, head_norm_eps, parts)

    def __call__(self, x: LinearInput, tables: RopeTables) -> torch.Tensor:
        """x [tokens, hidden_size] -> [tokens, hidden_size]."""
        heads, rotated = self._heads, self._heads + self._kv_heads
        qkv = self.qkv(x).view(-1, rotated + self._kv_heads, self._head_dim)
        qk, norms = qkv[:, :rotated], None
        if self.norms is not None and self._backend.normalizes:
            norms = self.norms.arguments
        elif self.norms is not None:
            qk = self.norms(qk)
        step = current_forward()
        kv = step.kv[self._layer]
        out = self._backend.run(
            qk, qkv[:, rotated:], tables, kv, self._scale, step.metadata[self._group],
            sinks=None if self.sinks is None else self.sinks.data,
            norms=norms,
            kv_scales=self.kv_scales.pair if kv.dtype is torch.float8_e4m3fn else UNSCALED,
        )  # fmt: skip
        return self.output(out.reshape(x.shape[0], heads * self._head_dim))
