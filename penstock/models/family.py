"""What a family file must define. Everything around ``forward`` is data, so that others can walk it.

A family is a module in this package with these names:

    ARCHITECTURES       checkpoint names it answers for: hub ("LlamaForCausalLM") and GGUF ("llama")
    read_config(reader) -> a frozen config of its own; reads with types and asserts what the code assumes
    WEIGHTS             loader.weight_map.WeightTable
    kv_groups(config)   -> tuple[KvGeometry, ...]; every attention layer is in exactly one
    carry_spec(config)  -> CarrySpec: what crosses a pipeline stage or feeds a drafter
    PARALLEL            parallel modes it supports, e.g. ("tensor",)
    build(config, parts) -> CausalModel
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from penstock.attention.contract import AttentionBackend, AttentionSpec
from penstock.kernels.device import CPU
from penstock.quantization.linear import LinearMethod, LinearSpec
from penstock.types.facts import PlatformFacts
from penstock.types.kv import Visibility


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGeometry:
    """The KV of the layers in one group, before a block size is chosen."""

    name: str
    visibility: Visibility
    layers: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False  # as AttentionSpec has it


def attention_spec(
    geometry: KvGeometry,
    dtype_name: str,
    platform: PlatformFacts,
    kv_dtype: str = "auto",
    batch_invariant: bool = False,
) -> AttentionSpec:
    """What the group's layers need of an attention backend; the runner plans with the same spec."""
    return AttentionSpec(
        num_heads=geometry.num_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        dtype=dtype_name,
        window=geometry.window,
        soft_cap=geometry.soft_cap,
        platform=platform,
        kv_dtype=kv_dtype,
        batch_invariant=batch_invariant,
        sinks=geometry.sinks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CarrySpec:
    """Names and widths of the tensors [tokens, width] that a stage hands to the next one."""

    widths: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """What a family is built with: the answers of the oracle, and nothing concrete."""

    dtype: torch.dtype
    platform: PlatformFacts
    linear_method: Callable[[LinearSpec], LinearMethod]
    attention_backend: Callable[[AttentionSpec], AttentionBackend]
    kv_dtype: str = "auto"  # as AttentionSpec has it
    batch_invariant: bool = False  # as LinearSpec and AttentionSpec have it
    device: torch.device = CPU  # of parameters; explaining a machine that is not here needs none of it

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


class CausalModel(Protocol):
    """The module tree of one family. Parameters are reached by the dotted targets of ``WEIGHTS``."""

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        carry: Mapping[str, torch.Tensor] | None = None,
        embeds: torch.Tensor | None = None,
        taps: Sequence[int] = (),
    ) -> tuple[Mapping[str, torch.Tensor], tuple[torch.Tensor, ...]]:
        """token_ids, positions [tokens] int64 -> (carry, hidden states after the tapped layers).

        Attention layers find their step's metadata and KV through ``attention.context``, set by the runner.
        """

    def logits(self, carry: Mapping[str, torch.Tensor], rows: torch.Tensor | None) -> torch.Tensor:
        """Final norm and LM head at the batch positions ``rows`` [n], None for all in order -> [n, vocab_size] float32.
        The memory is the caller's."""

    def greedy(self, carry: Mapping[str, torch.Tensor], rows: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The argmax of ``logits`` without keeping them: (token ids int64 [n], largest logits float32 [n]). Of equal
        logits the lowest id wins; the largest logit is NaN where any logit of the row is."""
