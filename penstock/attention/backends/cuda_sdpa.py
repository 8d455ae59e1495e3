"""Paged attention in torch calls on NVIDIA GPUs: gather, then scaled_dot_product_attention. Needs no compiler.

Knows no request. The queries of every row are cut into tiles of one size, so that rows of all lengths run side by side:
how many tiles there are at most follows from the number of tokens and rows, which of them a row has is computed on the
device. Nothing is read back, but a step gathers as many entries for every tile as its longest row has: recorded for all
lengths, it would gather the longest that is configured.

Entries, not blocks, are gathered. A tile with fewer entries than the longest is padded with one of its own, so that
whatever lies in a free block, even NaN, cannot reach a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from penstock.attention import needs
from penstock.attention.contract import UNSCALED, AttentionSpec, GroupStep, KvLayout, check_layer
from penstock.kernels.implementation import OpSpec
from penstock.kernels.ops import choose_op
from penstock.types.decision import Verdict

DTYPES = ("bfloat16", "float16", "float32")
TILE_QUERIES = 64
MAX_GATHERED_VALUES = 1 << 25  # of one gather of keys and values, and of the scores behind it; one tile always fits


@dataclass(frozen=True, slots=True)
class _Metadata:
    """``tokens`` [tiles * queries]: the query at each place of the tiles, any where there is none; ``places`` [tokens]:
    where each query is. Of each tile ``row``, and the positions in it from its first query, ``start``, to behind its
    last, ``end``, [tiles]; it looks at ``span`` entries up to there."""

    spec: AttentionSpec
    step: GroupStep
    rotary: Callable[..., torch.Tensor]
    written: tuple[torch.Tensor, torch.Tensor]
    tokens: torch.Tensor
    places: torch.Tensor
    row: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor
    queries: int
    span: int


class CudaSdpa:
    """Torch's own attention for NVIDIA GPUs. See the module's docstring."""

    name = "cuda_sdpa"
    block_tokens = (16, 32, 8, 64, 128, 256)
    eager_because = "cuda_sdpa would gather the longest request that is configured in every recorded step"
    normalizes = False

    def can_run(self, spec: AttentionSpec, /) -> Verdict:
        return needs.verdict(
            needs.card(spec, ()),
            needs.dtype(spec, DTYPES),
            needs.kv_dtype(spec, DTYPES),
            needs.equal_groups(spec),
            needs.no_soft_cap(spec),
            needs.no_sinks(spec, "scaled_dot_product_attention has no sinks"),
            needs.no_batch_invariance(spec, "pads rows to the longest"),
        )

    def kv_layout(self, spec: AttentionSpec, block_tokens: int, /) -> KvLayout:
        dtype = getattr(torch, spec.dtype if spec.kv_dtype == "auto" else spec.kv_dtype)
        return KvLayout(dtype, (2, block_tokens, spec.num_kv_heads, spec.head_dim))

    def plan(self, spec: AttentionSpec, step: GroupStep) -> _Metadata:
        device, num_tokens = step.kv_lens.device, step.slots.shape[0]
        queries = min(TILE_QUERIES, step.max_query_len)
        counts = step.query_start.diff()
        tiles, row, first = _cut(counts, queries, num_tokens, step.max_query_len)
        within = torch.arange(queries, device=device)
        start = step.kv_lens[row] - counts[row] + first
        span = step.max_kv_len if spec.window is None else min(step.max_kv_len, spec.window + queries - 1)
        row_of = torch.searchsorted(step.query_start[1:], torch.arange(num_tokens, device=device), right=True)
        place = torch.arange(num_tokens, device=device) - step.query_start[row_of]
        before = (tiles.cumsum(0) - tiles)[row_of]
        rotary, _ = choose_op("rotary", OpSpec(dtype=spec.dtype, platform=spec.platform))
        return _Metadata(
            spec=spec,
            step=step,
            rotary=rotary,
            written=(step.slots // step.block_tokens, step.slots % step.block_tokens),
            tokens=((step.query_start[row] + first)[:, None] + within).flatten().clamp_(max=num_tokens - 1),
            places=(before + place // queries) * queries + place % queries,
            row=row,
            start=start,
            end=torch.minimum(start + queries, step.kv_lens[row]).clamp_(min=1),
            queries=queries,
            span=span,
        )

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
        spec, head_dim = metadata.spec, qk.shape[2]
        check_layer(spec, kv, sinks, kv_scales, norms)
        rotated = qk if tables is None else metadata.rotary(qk, *tables)
        kv[:, 0].index_put_(metadata.written, rotated[:, spec.num_heads :].to(kv.dtype))
        kv[:, 1].index_put_(metadata.written, v.to(kv.dtype))
        num_tiles, queries = len(metadata.row), metadata.queries
        group = spec.num_heads // spec.num_kv_heads
        split = (num_tiles, queries, spec.num_kv_heads, group, head_dim)
        # Query heads that share a KV head are more queries of it.
        folded = rotated[:, : spec.num_heads].index_select(0, metadata.tokens).view(split).transpose(1, 2).flatten(2, 3)
        out = torch.empty_like(folded)
        values = max(2 * spec.num_kv_heads * head_dim, spec.num_heads * queries) * metadata.span
        size = max(1, MAX_GATHERED_VALUES // values)
        for begin in range(0, num_tiles, size):
            part = slice(begin, begin + size)
            out[part] = self._attend(folded[part], kv, scale, metadata, part)
        by_token = out.view(num_tiles, spec.num_kv_heads, queries, group, head_dim).transpose(1, 2)
        return by_token.reshape(-1, spec.num_heads, head_dim).index_select(0, metadata.places)

    def _attend(
        self, folded: torch.Tensor, kv: torch.Tensor, scale: float, metadata: _Metadata, part: slice
    ) -> torch.Tensor:
        spec, step = metadata.spec, metadata.step
        start, end = metadata.start[part, None], metadata.end[part, None]
        positions = (end - metadata.span).clamp_(min=0) + torch.arange(metadata.span, device=folded.device)
        seen = torch.minimum(positions, end - 1)
        if spec.window is not None:
            seen = torch.maximum(seen, torch.minimum(start - spec.window, end - 2) + 1)
        blocks = step.block_table.index_select(0, metadata.row[part]).gather(1, seen // step.block_tokens)
        at = blocks, seen % step.block_tokens
        keys, values = (kv[:, which][at].to(folded.dtype).transpose(1, 2) for which in (0, 1))
        asking = start + torch.arange(metadata.queries, device=folded.device)
        distance = asking[:, :, None] - positions[:, None, :]
        visible = distance >= 0
        if spec.window is not None:
            visible &= distance < spec.window
        visible = visible.repeat_interleave(spec.num_heads // spec.num_kv_heads, dim=1)[:, None]
        return scaled_dot_product_attention(folded, keys, values, visible, scale=scale)


def _cut(
    counts: torch.Tensor, queries: int, num_tokens: int, longest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How many tiles of ``queries`` queries each row has, and of each tile its row and its first query. Tiles that
    no row has come last and begin behind the queries of the last row."""
    rows = counts.shape[0]
    if longest <= queries:
        return torch.ones_like(counts), torch.arange(rows, device=counts.device), torch.zeros_like(counts)
    tiles = (counts + (queries - 1)) // queries
    ends = tiles.cumsum(0)
    tile = torch.arange((num_tokens + rows * (queries - 1)) // queries, device=counts.device)
    row = torch.searchsorted(ends, tile, right=True).clamp_(max=rows - 1)
    return tiles, row, (tile - (ends - tiles)[row]) * queries
