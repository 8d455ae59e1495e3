"""AttentionBackend: what a paged-attention implementation declares, and the two calls of a step.

Order of calls: the oracle asks ``can_run`` and reads ``block_tokens`` and ``kv_layout`` before any allocation; in every
step the runner calls ``plan`` once per KV group, and each layer of that group calls ``run`` with the metadata.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from penstock.types.decision import Verdict
from penstock.types.facts import PlatformFacts

UNSCALED = (1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """The attention of one KV group. ``window`` counts the query's own position; None sees all.

    ``kv_dtype`` is the type that keys and values are stored in, by torch's name, or "auto": what the backend prefers.
    "int8" means codes with a scale for each token and KV head, "float8_e4m3fn" values with one scale for the keys of a
    layer and one for its values, which ``run`` gets: they are divided by it, cut at +-448 and rounded.

    ``sinks``: each query head has one more score in the sum of its softmax, of a key that every query sees, whose value
    is zero (gpt-oss). ``run`` gets them.

    ``batch_invariant``: the bits of a result must follow from its query and what that sees alone, whatever rows and
    queries are computed beside it. A backend that cannot promise it refuses.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    window: int | None
    soft_cap: float | None
    platform: PlatformFacts
    kv_dtype: str = "auto"
    batch_invariant: bool = False
    sinks: bool = False


@dataclass(frozen=True, slots=True)
class KvLayout:
    """What one layer keeps in one block: a contiguous tensor whose inner order is the backend's own business."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class HostLengths:
    """What a step's ``query_start`` and ``kv_lens`` hold, int64 on the host, which knows it without waiting for the
    device. Read them in ``plan``: later steps use the memory again."""

    query_start: torch.Tensor  # [rows + 1]
    kv_lens: torch.Tensor  # [rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStep:
    """One step as one KV group sees it; all tensors int64 on the device, built once per step.

    Rows are ordered as in the plan; the tokens of row r are [query_start[r], query_start[r + 1]) of the batch.
    ``slots[t]`` is the entry that token t writes: block id * entries_per_block + offset. Rows of ``block_table`` may
    lie further apart than they are long. The ``max_`` fields and the table's width are those of this step: a backend
    whose calls are recorded takes nothing from them that a later step could need larger; the row stride is fixed.
    ``host`` is for backends that plan there (and have a reason in ``eager_because``: recorded, it would be that of the
    recording); None where whoever made the step did not know, as on a CPU, where the tensors can be read as they are.
    """

    query_start: torch.Tensor  # [rows + 1]
    kv_lens: torch.Tensor  # [rows] tokens visible to the row's last query, including this step's
    block_table: torch.Tensor  # [rows, max blocks]; 0 where a row has no block
    slots: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    max_query_len: int
    max_kv_len: int
    block_tokens: int
    host: HostLengths | None = None


class AttentionBackend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def block_tokens(self) -> tuple[int, ...]:
        """Block sizes it accepts, the preferred one first."""

    @property
    def eager_because(self) -> str:
        """Why steps with it are not to be recorded, although they could be; empty where they are."""

    @property
    def normalizes(self) -> bool:
        """Whether ``run`` takes the norms of queries and keys; where it does not, they are normalized before it."""

    def can_run(self, spec: AttentionSpec, /) -> Verdict: ...

    def kv_layout(self, spec: AttentionSpec, block_tokens: int, /) -> KvLayout:
        """What a layer of the group keeps in a block of ``block_tokens`` tokens."""

    def plan(self, spec: AttentionSpec, step: GroupStep) -> Any:
        """Metadata that every layer of the group shares in this step. Workspace is allocated here, not in ``run``."""

    def run(
        self,
        qk: torch.Tensor,
        v: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor] | None,
        kv: torch.Tensor,
        scale: float,
        metadata: Any,
        *,
        sinks: torch.Tensor | None = None,
        norms: tuple[torch.Tensor, float] | None = None,
        kv_scales: tuple[float, float] = UNSCALED,
    ) -> torch.Tensor:
        """Rotate queries and keys, write keys and values to their slots, then attend.

        qk [tokens, num_heads + num_kv_heads, head_dim], queries first, not yet rotated; v [tokens, num_kv_heads,
        head_dim]; tables: cosines and sines as the rotary op takes them, float32 [tokens, 1, head_dim], or None where
        nothing is rotated; kv [num_blocks, *kv_layout.shape], this layer's view of the pool, any block stride; sinks
        float32 [num_heads], contiguous, neither scaled nor bent by the soft cap, where the spec has them; norms:
        weights float32 [num_heads + num_kv_heads, head_dim], contiguous, and epsilon of an RMS norm of every head
        before its rotation, only where the backend ``normalizes``; kv_scales: of keys and values in float8, the same
        in every step. Returns [tokens, num_heads, head_dim]. Softmax and accumulation in float32. Raises ValueError
        for what ``check_layer`` refuses.
        """


def check_layer(
    spec: AttentionSpec,
    kv: torch.Tensor,
    sinks: torch.Tensor | None,
    kv_scales: tuple[float, float],
    unused_norms: tuple[torch.Tensor, float] | None = None,
) -> None:
    """Raises ValueError unless a layer brings sinks exactly if its spec has them, scales only to a cache that has them,
    and no norms to a backend that leaves them to others: nothing that a layer asks for is left out in silence."""
    if unused_norms is not None:
        raise ValueError("this backend does not normalize queries and keys, and the layer brings norms")
    if sinks is None:
        if spec.sinks:
            raise ValueError("the spec has sinks, and the layer brings none")
    elif not spec.sinks:
        raise ValueError("the layer brings sinks, and the spec has none")
    elif sinks.dtype is not torch.float32 or sinks.shape != (spec.num_heads,) or not sinks.is_contiguous():
        raise ValueError(f"sinks are contiguous float32 [{spec.num_heads}], found {sinks.dtype} {tuple(sinks.shape)}")
    if kv_scales != UNSCALED:
        if kv.dtype is not torch.float8_e4m3fn:
            raise ValueError(f"keys and values in {kv.dtype} have no scales, found {kv_scales}")
        if not all(0 < scale < math.inf for scale in kv_scales):
            raise ValueError(f"scales of keys and values are positive, found {kv_scales}")
