"""Paged attention on the extension: rotation with the write to the cache, and attention over the cache's tiles.

Knows no step and no layer. Tiles are described in native/attention/attention.hpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from penstock.kernels.native.extension import address, extension
from penstock.kernels.native.memory import empty

# The numbers of KvType in native/attention/attention.hpp.
KV_TYPES: Mapping[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
TILE = 16  # tokens
MAX_HEAD_DIM = 512
MAX_GROUP = 96  # query heads that share a KV head
CHUNK = 64  # tokens with a softmax of their own
# Up to so many pairs of a token and a KV head, the chunks of one query are shared out among the threads.
SPLIT_BELOW = 64
RECORD_TAIL = 16


def tile_elements(dtype: torch.dtype, head_dim: int) -> int:
    """Elements of the cache's type in one tile: keys, padded values, and the scales of codes."""
    scales = 2 * TILE * torch.float32.itemsize if dtype is torch.int8 else 0
    return TILE * (head_dim + _padded(head_dim)) + scales


@dataclass(frozen=True, slots=True)
class PagedRows:
    """One step's rows, as attention.contract.GroupStep has them; all int64. Values are read when a kernel runs."""

    query_start: torch.Tensor
    kv_lens: torch.Tensor
    block_table: torch.Tensor
    slots: torch.Tensor
    block_tokens: int


def paged_attention(
    isa: int,
    qk: torch.Tensor,
    v: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    kv: torch.Tensor,
    rows: PagedRows,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate, write and attend, as ``AttentionBackend.run``. qk, v float32 with contiguous heads; kv [num_blocks,
    kv_heads, tiles of a block, tile_elements]; sinks float32 [heads], contiguous. Returns float32
    [tokens, heads, head_dim].

    The bits of a token's result depend on its own queries and the keys and values that it sees, and on nothing else.
    """
    tokens, kv_heads, head_dim = v.shape
    heads = qk.shape[1] - kv_heads
    out = empty((tokens, heads, head_dim), torch.float32)
    parts, arrived, max_chunks = _parts(rows, tokens, heads, kv_heads, head_dim, window)
    q = rotate_and_write(isa, qk, v, tables, kv, rows.slots, rows.block_tokens, scale=scale, arrived=arrived)
    extension().paged_attention(
        isa, KV_TYPES[kv.dtype], q.data_ptr(), *_pool(kv, rows.block_tokens, kv_heads, head_dim),
        _indices(rows.query_start), _indices(rows.kv_lens), address(rows.block_table, torch.int64),
        rows.block_table.stride(0), rows.block_table.shape[1], len(rows.kv_lens), tokens, heads, window or 0,
        soft_cap or 0.0, 0 if sinks is None else address(sinks, torch.float32), out.data_ptr(), _address(parts),
        _address(arrived), max_chunks,
    )  # fmt: skip
    return out


def rotate_and_write(
    isa: int,
    qk: torch.Tensor,
    v: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    kv: torch.Tensor,
    slots: torch.Tensor,
    block_tokens: int,
    *,
    scale: float = 1.0,
    arrived: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate queries and keys, write keys and values to their slots: ``reference.rotate_and_write`` in the layout of
    ``paged_attention``. Returns the queries, times ``scale``, float32 [tokens, heads, head_dim].

    ``arrived`` int32 counts finished chunks in ``paged_attention``; it is set to zero on the way.
    """
    tokens, kv_heads, head_dim = v.shape
    heads = qk.shape[1] - kv_heads
    if qk.stride(2) != 1 or v.stride(2) != 1:
        raise ValueError(f"a native kernel needs contiguous heads, found strides {qk.stride()} and {v.stride()}")
    cosines, sines = (0, 0) if tables is None else (_angles(table, tokens, head_dim) for table in tables)
    q = empty((tokens, heads, head_dim), torch.float32)
    extension().rotate_and_write(
        isa, KV_TYPES[kv.dtype], address(qk, torch.float32), qk.stride(0), qk.stride(1), address(v, torch.float32),
        v.stride(0), v.stride(1), cosines, sines, tokens, heads, scale, _indices(slots),
        *_pool(kv, block_tokens, kv_heads, head_dim), q.data_ptr(), _address(arrived),
    )  # fmt: skip
    return q


def _pool(kv: torch.Tensor, block_tokens: int, kv_heads: int, head_dim: int) -> tuple[int, int, int, int, int]:
    """The arguments of both kernels that describe the cache."""
    return address(kv, kv.dtype), _block_stride(kv), block_tokens, kv_heads, head_dim


def _parts(
    rows: PagedRows, tokens: int, heads: int, kv_heads: int, head_dim: int, window: int | None
) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
    """Where the chunks of one query wait for each other, when they are shared out: by shapes alone, and for the longest
    row that the table's row stride has room for, because a recorded call meets longer rows later."""
    if tokens * kv_heads > SPLIT_BELOW:
        return None, None, 0
    table = rows.block_table
    longest = max(table.stride(0), table.shape[1]) * rows.block_tokens
    max_chunks = -(-longest // CHUNK) if window is None else min(-(-longest // CHUNK), -(-window // CHUNK) + 1)
    shape = (tokens * kv_heads, max_chunks, heads // kv_heads, _padded(head_dim) + RECORD_TAIL)
    return empty(shape, torch.float32), empty((tokens * kv_heads,), torch.int32), max_chunks


def most_partial_bytes(heads: int, kv_heads: int, head_dim: int, max_kv_len: int) -> int:
    """Workspace of the largest call whose queries are shared out in chunks: rows of up to ``max_kv_len`` tokens."""
    shared = SPLIT_BELOW // kv_heads * heads * -(-max_kv_len // CHUNK)
    return shared * (_padded(head_dim) + RECORD_TAIL) * 4


def _padded(head_dim: int) -> int:
    return -(-head_dim // 16) * 16


def _block_stride(kv: torch.Tensor) -> int:
    """Bytes from a block to the next. Raises ValueError when a block's share of the layer is not contiguous."""
    if not kv[0].is_contiguous():
        raise ValueError(f"a layer's share of a block must be contiguous, found strides {kv.stride()}")
    return kv.stride(0) * kv.dtype.itemsize


def _angles(table: torch.Tensor, tokens: int, head_dim: int) -> int:
    if table.numel() != tokens * head_dim or not table.is_contiguous():
        raise ValueError(f"needs contiguous tables [{tokens}, 1, {head_dim}], found {tuple(table.shape)}")
    return address(table, torch.float32)


def _indices(tensor: torch.Tensor) -> int:
    if not tensor.is_contiguous():
        raise ValueError(f"needs contiguous indices, found strides {tensor.stride()}")
    return address(tensor, torch.int64)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
