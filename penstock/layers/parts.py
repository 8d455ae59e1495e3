"""LayerParts: what every layer is built with. models.family.ModelParts satisfies it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from penstock.attention.contract import AttentionBackend, AttentionSpec
from penstock.kernels.implementation import OpSpec
from penstock.kernels.ops import choose_op
from penstock.quantization.linear import LinearMethod, LinearSpec
from penstock.types.facts import PlatformFacts


class LayerParts(Protocol):
    """The answers of the oracle, and nothing concrete."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def dtype_name(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def platform(self) -> PlatformFacts: ...

    @property
    def batch_invariant(self) -> bool: ...

    def linear_method(self, spec: LinearSpec, /) -> LinearMethod: ...

    def attention_backend(self, spec: AttentionSpec, /) -> AttentionBackend: ...


def layer_op(name: str, parts: LayerParts) -> Callable[..., Any]:
    """The function of an op of the list for the activations of these layers."""
    function, _ = choose_op(name, OpSpec(dtype=parts.dtype_name, platform=parts.platform))
    return function
