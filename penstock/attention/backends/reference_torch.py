"""The plain attention backend: the kernel list's reference, one row and query at a time. Truth, not speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from penstock.attention import needs
from penstock.attention.contract import UNSCALED, AttentionSpec, GroupStep, KvLayout, check_layer
from penstock.kernels import reference
from penstock.kernels.implementation import OpSpec
from penstock.kernels.ops import choose_op
from penstock.kernels.reference.attention import elements, stored
from penstock.types.decision import Verdict

KV_DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn")


@dataclass(frozen=True, slots=True)
class _Metadata:
    spec: AttentionSpec
    step: GroupStep
    rotary: Callable[..., torch.Tensor]


class ReferenceTorch:
    """Runs everything everywhere, slowly; other backends are compared with it."""

    name = "reference_torch"
    block_tokens = (16, 32, 8, 64, 128, 256)
    eager_because = ""
    normalizes = False

    def can_run(self, spec: AttentionSpec, /) -> Verdict:
        return needs.verdict(
            needs.kv_dtype(spec, KV_DTYPES),
            needs.no_batch_invariance(spec, "torch's library promises no order of sums"),
        )

    def kv_layout(self, spec: AttentionSpec, block_tokens: int, /) -> KvLayout:
        dtype = getattr(torch, spec.dtype if spec.kv_dtype == "auto" else spec.kv_dtype)
        return KvLayout(dtype, (2, block_tokens, spec.num_kv_heads, spec.head_dim))

    def plan(self, spec: AttentionSpec, step: GroupStep) -> _Metadata:
        rotary, _ = choose_op("rotary", OpSpec(dtype=spec.dtype, platform=spec.platform))
        return _Metadata(spec, step, rotary)

    def run(
        self,
        qk: torch.Tensor,
        v: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor] | None,
        kv: torch.Tensor,
        scale: float,
        metadata: _Metadata,
        *,
        sinks: torch.Tensor | None = None,
        norms: tuple[torch.Tensor, float] | None = None,
        kv_scales: tuple[float, float] = UNSCALED,
    ) -> torch.Tensor:
        step, spec = metadata.step, metadata.spec
        check_layer(spec, kv, sinks, kv_scales, norms)
        rotated = qk if tables is None else metadata.rotary(qk, *tables)
        blocks, offsets = step.slots // step.block_tokens, step.slots % step.block_tokens
        for which, new in enumerate((rotated[:, spec.num_heads :], v)):
            elements(kv)[blocks, which, offsets] = elements(stored(new, kv.dtype, kv_scales[which]))
        return reference.paged_attention(
            rotated[:, : spec.num_heads], kv, step.query_start, step.kv_lens, step.block_table, scale,
            spec.window, spec.soft_cap, sinks, kv_scales,
        )  # fmt: skip
