"""LayerParts: what every layer is built with. models.family.ModelParts satisfies it."""

from __future__ import annotations

from typing import Protocol

import torch

from penstock.attention.contract import AttentionBackend, AttentionSpec
from penstock.quantization.linear import LinearMethod, LinearSpec
from penstock.types.facts import PlatformFacts


class LayerParts(Protocol):
    """The answers of the oracle, and nothing concrete."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def dtype_name(self) -> str: ...

    @property
    def platform(self) -> PlatformFacts: ...

    def linear_method(self, spec: LinearSpec, /) -> LinearMethod: ...

    def attention_backend(self, spec: AttentionSpec, /) -> AttentionBackend: ...
