"""The memory behind the block ids: one buffer per pool, one strided view per layer. Knows no request and no table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from penstock.attention.contract import KvLayout
from penstock.kernels.device import CPU
from penstock.kernels.pages import zeroed
from penstock.models.family import KvGeometry
from penstock.types.kv import KvGroupSpec


def block_bytes(geometry: KvGeometry, layout: KvLayout) -> int:
    """Bytes of one block: what every layer of the group keeps in it."""
    return layout.nbytes * len(geometry.layers)


class KvStorage:
    """Owns the KV memory of one rank.

    A block is contiguous: [layers of the group, *the layout of the group's attention backend]. Groups of one pool have
    blocks of equal bytes, whatever their inner shape, so that any block can serve any of them. Fresh memory is zero:
    some backends read whole blocks and mask afterwards, and a NaN would survive a weight of zero. With ``scratch`` each
    pool has one block more than was asked, where rows write that only fill a recorded shape.
    """

    def __init__(
        self,
        geometries: Sequence[KvGeometry],
        groups: Sequence[KvGroupSpec],
        num_blocks: Sequence[int],
        layouts: Sequence[KvLayout],
        device: torch.device = CPU,
        *,
        scratch: bool = False,
    ) -> None:
        sizes: dict[int, int] = {}
        for group in groups:
            if sizes.setdefault(group.pool, group.bytes_per_block) != group.bytes_per_block:
                raise ValueError(f"group {group.name}: blocks of pool {group.pool} must have equal bytes")
        present = [count + scratch for count in num_blocks]
        self._pools = [_zeroed(count * sizes[pool], device) for pool, count in enumerate(present)]
        self._layers: dict[int, torch.Tensor] = {}
        for geometry, group, layout in zip(geometries, groups, layouts, strict=True):
            shape = (present[group.pool], len(geometry.layers), *layout.shape)
            blocks = self._pools[group.pool].view(layout.dtype).view(shape)
            for place, layer in enumerate(geometry.layers):
                self._layers[layer] = blocks[:, place]
        # Of each group: the first slot of the scratch block.
        self.scratch_slots = tuple(num_blocks[group.pool] * group.entries_per_block for group in groups)

    @property
    def layers(self) -> Mapping[int, torch.Tensor]:
        """Layer number -> [num_blocks, *layout.shape], any block stride."""
        return self._layers

    @property
    def nbytes(self) -> int:
        return sum(pool.numel() for pool in self._pools)


def _zeroed(nbytes: int, device: torch.device) -> torch.Tensor:
    return zeroed(nbytes) if device == CPU else torch.zeros(nbytes, dtype=torch.uint8, device=device)
