"""Paged attention by Triton's kernels on NVIDIA GPUs.

Knows no request. A step whose rows all have few queries (decoding, verification of drafts) is one launch per layer,
which normalizes, rotates, writes and attends. In other steps one launch does all but attend, a second attends for long
rows, and a third for those short ones among them.

For batch-invariant results a step of any kind is rotated and written by one launch, and all of its rows attend in a
second one, as long rows do.

Keys and values in float8 are converted by the card where it can, and by integer instructions elsewhere.

A block holds [2, kv_heads, block_tokens, head_dim]: what a program reads of a block lies together. Nothing of a step's
lengths is read on the host, so that steps can be captured: how far a row is split follows from the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from penstock.attention import needs
from penstock.attention.contract import UNSCALED, AttentionSpec, GroupStep, KvLayout, check_layer
from penstock.kernels.triton import lazy
from penstock.types.decision import Verdict

if TYPE_CHECKING:
    from penstock.kernels.triton.attention import PagedRows
    from penstock.kernels.triton.attention_decode import Workspace

DTYPES = ("bfloat16", "float16", "float32")
KV_DTYPES = (*DTYPES, "float8_e4m3fn")
MAX_HEAD_DIM = 256
MAX_GROUP = 64  # query heads that share a KV head
INVARIANT_BLOCK_HEADS = 8  # of one program that rotates: one kernel for few tokens and for many
PROCESSORS_WITHOUT_A_CARD = 4  # of the interpreter

_rotate_and_write: Callable[..., torch.Tensor] = lazy("attention", "rotate_and_write")
_prefill: Callable[..., None] = lazy("attention_prefill", "prefill")
_decode: Callable[..., None] = lazy("attention_decode", "decode")
_make_workspace: Callable[..., Workspace] = lazy("attention_decode", "make_workspace")
_queries_of_tile: Callable[[int, int], int] = lazy("attention_decode", "queries_of_tile")
_choose_num_splits: Callable[[int, int, int], int] = lazy("attention_decode", "choose_num_splits")
_paged_rows: Callable[..., PagedRows] = lazy("attention", "PagedRows")
_scoring: Callable[..., Any] = lazy("attention", "Scoring")


@dataclass(frozen=True, slots=True)
class _Metadata:
    spec: AttentionSpec
    rows: PagedRows
    workspace: Workspace
    max_query_len: int

    @property
    def is_short(self) -> bool:
        """No row has more queries than the decoding kernel takes."""
        return self.max_query_len <= self.workspace.queries


class CudaTriton:
    """Triton's attention for NVIDIA GPUs. See the module's docstring."""

    name = "cuda_triton"
    block_tokens = (16, 32, 64, 128)
    eager_because = ""
    normalizes = True

    def can_run(self, spec: AttentionSpec, /) -> Verdict:
        return needs.verdict(
            needs.card(spec),
            needs.library(spec, "triton"),
            needs.dtype(spec, DTYPES),
            needs.kv_dtype(spec, KV_DTYPES),
            needs.equal_groups(spec, MAX_GROUP),
            needs.even_head_dim(spec, MAX_HEAD_DIM),
        )

    def kv_layout(self, spec: AttentionSpec, block_tokens: int, /) -> KvLayout:
        dtype = getattr(torch, spec.dtype if spec.kv_dtype == "auto" else spec.kv_dtype)
        return KvLayout(dtype, (2, spec.num_kv_heads, block_tokens, spec.head_dim))

    def plan(self, spec: AttentionSpec, step: GroupStep) -> _Metadata:
        rows = _paged_rows(step.query_start, step.kv_lens, step.block_table, step.slots)
        device = step.kv_lens.device
        num_splits = 1
        if not spec.batch_invariant:
            num_splits = _choose_num_splits(rows.num_rows, spec.num_kv_heads, _num_processors(device))
        workspace = _make_workspace(
            rows.num_rows,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            queries=_queries_of_tile(spec.num_heads // spec.num_kv_heads, step.max_query_len),
            num_splits=num_splits,
            device=device,
        )
        return _Metadata(spec, rows, workspace, step.max_query_len)

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
        spec, rows, workspace = metadata.spec, metadata.rows, metadata.workspace
        check_layer(spec, kv, sinks, kv_scales)
        scoring = _scoring(scale, spec.window, spec.soft_cap, sinks)
        shape = (qk.shape[0], qk.shape[1] - v.shape[1], qk.shape[2])
        out = torch.empty(shape, dtype=qk.dtype, device=qk.device)
        if spec.batch_invariant:
            heads = INVARIANT_BLOCK_HEADS
            queries = _rotate_and_write(
                qk, v, tables, kv, rows.slots, norms=norms, kv_scales=kv_scales, block_heads=heads
            )
            _prefill(queries, kv, rows, out, scoring, kv_scales=kv_scales, batch_invariant=True)
            return out
        if metadata.is_short:
            _decode(qk, v, tables, kv, rows, out, scoring, workspace, norms=norms, kv_scales=kv_scales)
            return out
        queries = _rotate_and_write(qk, v, tables, kv, rows.slots, norms=norms, kv_scales=kv_scales)
        _prefill(queries, kv, rows, out, scoring, kv_scales=kv_scales, more_than=workspace.queries)
        if shape[0] < rows.num_rows * metadata.max_query_len:  # rows are not all as long as the longest
            _decode(queries, None, None, kv, rows, out, scoring, workspace, kv_scales=kv_scales)
        return out


def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return PROCESSORS_WITHOUT_A_CARD
    return torch.cuda.get_device_properties(device).multi_processor_count
