"""Paged attention by the FlashAttention package (Dao 2023) on NVIDIA GPUs, where it is installed.

Knows no request. Rotation and the write to the pool are Triton's kernel; one call of the package attends for rows of
all lengths. It reads every length on the device and sizes its launches by the largest that is told, so that steps can
be captured. A block of the pool is that of cuda_triton, seen by the package through its strides; a tile of its kernels
has to lie in one block, which takes blocks of 256 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from penstock.attention import needs
from penstock.attention.contract import UNSCALED, AttentionSpec, GroupStep, KvLayout, check_layer
from penstock.kernels.triton import lazy
from penstock.types.decision import Verdict

DTYPES = ("bfloat16", "float16")
LEAST_VERSION, BELOW_VERSION = (2, 8), (3,)  # between them the calls are as they are made here
HEAD_DIM_MULTIPLE, MAX_HEAD_DIM = 8, 256

_rotate_and_write: Callable[..., torch.Tensor] = lazy("attention", "rotate_and_write")


@dataclass(frozen=True, slots=True)
class _Metadata:
    """Bounds and lengths as int32, which the package wants."""

    spec: AttentionSpec
    slots: torch.Tensor
    query_start: torch.Tensor  # [rows + 1]
    kv_start: torch.Tensor  # [rows + 1], as if the keys of all rows followed each other
    block_table: torch.Tensor
    max_query_len: int
    max_kv_len: int
    window: tuple[int, int]  # positions seen before and after the query's own; -1: all
    soft_cap: float


class CudaFlashAttn:
    """FlashAttention's kernels. See the module's docstring."""

    name = "cuda_flash_attn"
    block_tokens = (256, 512)
    eager_because = ""
    normalizes = False

    def can_run(self, spec: AttentionSpec, /) -> Verdict:
        return needs.verdict(
            needs.card(spec),
            needs.library(spec, "flash-attn", LEAST_VERSION, BELOW_VERSION),
            needs.library(spec, "triton"),
            needs.dtype(spec, DTYPES),
            needs.kv_dtype_of_activations(spec),
            needs.equal_groups(spec),
            _head_dim(spec),
            needs.no_sinks(spec, "the call that is made here has no sinks"),
            needs.no_batch_invariance(spec, "divides long rows by how many rows there are"),
        )

    def kv_layout(self, spec: AttentionSpec, block_tokens: int, /) -> KvLayout:
        return KvLayout(getattr(torch, spec.dtype), (2, spec.num_kv_heads, block_tokens, spec.head_dim))

    def plan(self, spec: AttentionSpec, step: GroupStep) -> _Metadata:
        max_query_len, num_rows = step.max_query_len, step.kv_lens.shape[0]
        if max_query_len == 1 and step.slots.shape[0] != num_rows:
            max_query_len = 2  # told that one is the most, the package takes every row to have one
        return _Metadata(
            spec=spec,
            slots=step.slots,
            query_start=step.query_start.to(torch.int32),
            kv_start=torch.nn.functional.pad(step.kv_lens.cumsum(0), (1, 0)).to(torch.int32),
            block_table=step.block_table.to(torch.int32),
            max_query_len=max_query_len,
            max_kv_len=step.max_kv_len,
            window=(-1, -1) if spec.window is None else (spec.window - 1, 0),
            soft_cap=spec.soft_cap or 0.0,
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
        check_layer(metadata.spec, kv, sinks, kv_scales, norms)
        queries = _rotate_and_write(qk, v, tables, kv, metadata.slots)
        keys, values = (kv[:, which].transpose(1, 2) for which in (0, 1))  # [blocks, block_tokens, kv_heads, head_dim]
        return _attend()(
            queries,
            keys,
            values,
            metadata.query_start,
            metadata.kv_start,
            metadata.max_query_len,
            metadata.max_kv_len,
            softmax_scale=scale,
            causal=True,
            window_size=metadata.window,
            softcap=metadata.soft_cap,
            block_table=metadata.block_table,
        )


def _head_dim(spec: AttentionSpec) -> list[str]:
    if spec.head_dim % HEAD_DIM_MULTIPLE or spec.head_dim > MAX_HEAD_DIM:
        return [f"needs a head_dim in multiples of {HEAD_DIM_MULTIPLE} up to {MAX_HEAD_DIM}, found {spec.head_dim}"]
    return []


@cache
def _attend() -> Callable[..., torch.Tensor]:
    from flash_attn import flash_attn_varlen_func

    attend: Callable[..., torch.Tensor] = flash_attn_varlen_func
    return attend
