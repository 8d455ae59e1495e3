"""The plain attention backend: the kernel list's reference, one row and query at a time. Truth, not speed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from penstock.attention.contract import AttentionSpec, GroupStep
from penstock.kernels import reference
from penstock.types.decision import YES, Verdict


@dataclass(frozen=True, slots=True)
class _Metadata:
    spec: AttentionSpec
    step: GroupStep


class ReferenceTorch:
    """Runs everything everywhere, slowly; other backends are compared with it."""

    name = "reference_torch"
    block_tokens = (16, 32, 8, 64, 128, 256)

    def can_run(self, spec: AttentionSpec, /) -> Verdict:
        return YES

    def plan(self, spec: AttentionSpec, step: GroupStep) -> _Metadata:
        return _Metadata(spec, step)

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, scale: float, metadata: _Metadata
    ) -> torch.Tensor:
        step, spec = metadata.step, metadata.spec
        blocks, offsets = step.slots // step.block_tokens, step.slots % step.block_tokens
        kv[blocks, 0, offsets] = k
        kv[blocks, 1, offsets] = v
        return reference.paged_attention(
            q, kv, step.query_start, step.kv_lens, step.block_table, scale, spec.window, spec.soft_cap
        )
