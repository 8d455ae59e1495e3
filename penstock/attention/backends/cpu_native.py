"""Paged attention by the compiled kernels, for every instruction set that they are built for.

Knows no request. Queries and keys are rotated, and keys and values written, in one kernel; a second one attends. A
block is stored in tiles of 16 tokens of one KV head: keys as [head_dim, 16], then values as [16, head_dim padded to a
multiple of 16], then, for int8, 16 scales of the keys and 16 of the values as float32.

A step costs Python nothing per row or token: all of its numbers are read by the kernels when they run. The bits of a
result depend on the query and on what it sees alone: keys are walked in chunks at fixed positions, each with a softmax
of its own, and the chunks are merged in order, however the work is divided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from penstock.attention import needs
from penstock.attention.contract import UNSCALED, AttentionSpec, GroupStep, KvLayout, check_layer
from penstock.kernels.implementation import OpSpec
from penstock.kernels.native import attention, implementations
from penstock.types.decision import Verdict

KV_DTYPES = ("bfloat16", "float32", "int8")
DEFAULT_KV_DTYPE = "bfloat16"
ISAS = implementations(attention.paged_attention)


@dataclass(frozen=True, slots=True)
class _Metadata:
    spec: AttentionSpec
    function: Callable[..., torch.Tensor]
    rows: attention.PagedRows


class CpuNative:
    """Native attention for CPUs. See the module's docstring."""

    name = "cpu_native"
    block_tokens = (16, 32, 64, 128, 256)
    eager_because = ""
    normalizes = False

    def can_run(self, spec: AttentionSpec, /) -> Verdict:
        instruction_sets = [each.can_run(OpSpec(dtype=spec.dtype, platform=spec.platform)) for each in ISAS]
        usable = any(answer.ok for answer in instruction_sets)
        return needs.verdict(
            () if usable else instruction_sets[-1].reasons,  # of the baseline, which asks least
            needs.kv_dtype(spec, KV_DTYPES),
            needs.equal_groups(spec, attention.MAX_GROUP),
            needs.even_head_dim(spec, attention.MAX_HEAD_DIM),
        )

    def kv_layout(self, spec: AttentionSpec, block_tokens: int, /) -> KvLayout:
        dtype = getattr(torch, DEFAULT_KV_DTYPE if spec.kv_dtype == "auto" else spec.kv_dtype)
        tiles = block_tokens // attention.TILE
        return KvLayout(dtype, (spec.num_kv_heads, tiles, attention.tile_elements(dtype, spec.head_dim)))

    def plan(self, spec: AttentionSpec, step: GroupStep) -> _Metadata:
        asked = OpSpec(dtype=spec.dtype, platform=spec.platform)
        function = next(each.function for each in ISAS if each.can_run(asked).ok)
        rows = attention.PagedRows(step.query_start, step.kv_lens, step.block_table, step.slots, step.block_tokens)
        return _Metadata(spec, function, rows)

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
        spec = metadata.spec
        check_layer(spec, kv, sinks, kv_scales, norms)
        return metadata.function(
            qk, v, tables, kv, metadata.rows, scale=scale, window=spec.window, soft_cap=spec.soft_cap, sinks=sinks
        )
