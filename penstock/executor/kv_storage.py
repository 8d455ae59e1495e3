"""The memory behind the block ids: one buffer per pool, one strided view per layer. Knows no request and no table."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence

import torch

from penstock.models.family import KvGeometry
from penstock.types.kv import KvGroupSpec


def block_bytes(geometry: KvGeometry, block_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of one block: keys and values of ``block_tokens`` tokens in every layer of the group."""
    per_layer = 2 * block_tokens * geometry.num_kv_heads * geometry.head_dim
    return per_layer * len(geometry.layers) * dtype.itemsize


class KvStorage:
    """Owns the KV memory of one rank.

    A block is contiguous: [layers of the group, 2, block_tokens, kv heads, head_dim]. Groups of one pool have blocks of
    equal bytes, whatever their inner shape, so that any block can serve any of them. Fresh memory is zero: attention
    reads whole blocks and masks afterwards, and a NaN would survive a weight of zero.
    """

    def __init__(
        self,
        geometries: Sequence[KvGeometry],
        groups: Sequence[KvGroupSpec],
        num_blocks: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        sizes: dict[int, int] = {}
        for group in groups:
            if sizes.setdefault(group.pool, group.bytes_per_block) != group.bytes_per_block:
                raise ValueError(f"group {group.name}: blocks of pool {group.pool} must have equal bytes")
        self._pools = [_zeroed(count * sizes[pool]) for pool, count in enumerate(num_blocks)]
        self._layers: dict[int, torch.Tensor] = {}
        for geometry, group in zip(geometries, groups, strict=True):
            shape = (
                num_blocks[group.pool],
                len(geometry.layers),
                2,
                group.entries_per_block,
                geometry.num_kv_heads,
                geometry.head_dim,
            )
            blocks = self._pools[group.pool].view(dtype).view(shape)
            for place, layer in enumerate(geometry.layers):
                self._layers[layer] = blocks[:, place]

    @property
    def layers(self) -> Mapping[int, torch.Tensor]:
        """Layer number -> [num_blocks, 2, block_tokens, kv heads, head_dim], any block stride."""
        return self._layers

    @property
    def nbytes(self) -> int:
        return sum(pool.numel() for pool in self._pools)


def _zeroed(nbytes: int) -> torch.Tensor:
    """Zero bytes that cost neither time nor memory before they are written: pages straight from the system.

    Filling 4 GiB takes longer than loading a small model (2.7 s of 3.9 s when this was measured).
    """
    if nbytes == 0:
        return torch.zeros(0, dtype=torch.uint8)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8)
