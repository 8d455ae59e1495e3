"""A model with the KV that its layers read: from the inputs of a step to what is wanted of its logits.

Knows no plan, no seat and no sampler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from penstock.attention.context import ForwardContext, forward_context
from penstock.attention.contract import AttentionBackend, AttentionSpec
from penstock.executor.graphs import Variant
from penstock.executor.inputs import ForwardInputs
from penstock.executor.kv_storage import KvStorage
from penstock.executor.sampler.logprobs import RawLogprobs
from penstock.models.family import CausalModel
from penstock.types.kv import KvGroupSpec
from penstock.types.result import TokenLogprobs

PROMPT_LOGITS_ELEMENTS = 4 << 20  # of float32 at once: whole prompts times vocabularies would not fit

Carry = Mapping[str, torch.Tensor]
# What a Variant of a step computes: nothing; token ids and largest logits; logits.
Computed = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class GroupAttention:
    """The backend of one KV group and the spec it was chosen for."""

    spec: AttentionSpec
    backend: AttentionBackend


class Forward:
    """Stateless but for the memory behind the blocks."""

    def __init__(
        self,
        model: CausalModel,
        groups: Sequence[KvGroupSpec],
        attention: Sequence[GroupAttention],
        storage: KvStorage,
    ) -> None:
        self._model = model
        self._groups = tuple(groups)
        self._attention = tuple(attention)
        self._storage = storage

    def carry(self, inputs: ForwardInputs) -> Carry:
        """What the model's last layer hands to its logits."""
        metadata = {
            group.name: attention.backend.plan(attention.spec, step)
            for group, attention, step in zip(self._groups, self._attention, inputs.groups, strict=True)
        }
        with forward_context(ForwardContext(metadata, self._storage.layers)):
            carry, _ = self._model.forward(inputs.token_ids, inputs.positions)
        return carry

    def answers(self, carry: Carry, asked: torch.Tensor | None, variant: Variant) -> Computed:
        if variant is Variant.NOTHING:
            return ()
        if variant is Variant.GREEDY:
            return self._model.greedy(carry, asked)
        return (self._model.logits(carry, asked),)

    def compute(self, inputs: ForwardInputs, variant: Variant) -> Computed:
        return self.answers(self.carry(inputs), inputs.asked, variant)

    def describe(
        self, carry: Carry, vocab_size: int, first: int, chosen: Sequence[int], num_top: int
    ) -> list[TokenLogprobs] | None:
        """The log-probabilities of ``chosen[i]`` by the logits at batch position first + i, in slices of bounded
        memory; None when they are not finite."""
        entries: list[TokenLogprobs] = []
        size = max(1, PROMPT_LOGITS_ELEMENTS // vocab_size)
        device = next(iter(carry.values())).device
        for begin in range(0, len(chosen), size):
            part = chosen[begin : begin + size]
            at = torch.arange(first + begin, first + begin + len(part), device=device)
            logits = self._model.logits(carry, at).cpu()
            if not bool(torch.isfinite(logits).all()):
                return None
            entries += RawLogprobs(logits).describe(part, [num_top] * len(part))
        return entries
