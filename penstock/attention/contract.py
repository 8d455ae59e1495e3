"""AttentionBackend: what a paged-attention implementation declares, and the two calls of a step.

Order of calls: the oracle asks ``can_run`` and reads ``block_tokens`` before any allocation; in every step the
runner calls ``plan`` once per KV group, and each layer of that group calls ``run`` with the metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from penstock.types.decision import Verdict
from penstock.types.facts import PlatformFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """The attention of one KV group. ``window`` counts the query's own position; None sees all."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    window: int | None
    soft_cap: float | None
    platform: PlatformFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStep:
    """One step as one KV group sees it; all tensors int64 on the device, built once per step.

    Rows are ordered as in the plan; the tokens of row r are [query_start[r], query_start[r + 1]) of the batch.
    ``slots[t]`` is the entry that token t writes: block id * entries_per_block + offset.
    """

    query_start: torch.Tensor  # [rows + 1]
    kv_lens: torch.Tensor  # [rows] tokens visible to the row's last query, including this step's
    block_table: torch.Tensor  # [rows, max blocks]; 0 where a row has no block
    slots: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    max_query_len: int
    max_kv_len: int
    block_tokens: int


class AttentionBackend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def block_tokens(self) -> tuple[int, ...]:
        """Block sizes it accepts, the preferred one first."""

    def can_run(self, spec: AttentionSpec, /) -> Verdict: ...

    def plan(self, spec: AttentionSpec, step: GroupStep) -> Any:
        """Metadata that every layer of the group shares in this step. Workspace is allocated here, not in ``run``."""

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, scale: float, metadata: Any
    ) -> torch.Tensor:
        """Write k and v to their slots, then attend.

        q [tokens, num_heads, head_dim]; k, v [tokens, num_kv_heads, head_dim];
        kv [num_blocks, 2, block_tokens, num_kv_heads, head_dim], this layer's view of the pool, any block stride.
        Returns [tokens, num_heads, head_dim]. Softmax and accumulation in float32.
        """
