"""A KV tier of given size that answers late, forgets, and counts what is prepared. Holds hashes, not bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from penstock.core.ports import Lookup
from penstock.errors import IntegrityError
from penstock.types.kv import BlockHash

_Key = tuple[int, BlockHash]


class MockTier:
    """``late`` is asked at every look-up whether to answer later. Evicts the least recently stored block."""

    def __init__(self, name: str = "mock", capacity: int = 1 << 20, late: Callable[[], bool] = lambda: False) -> None:
        self._name = name
        self._capacity = capacity
        self._late = late
        self._present: OrderedDict[_Key, None] = OrderedDict()
        self._writing: set[_Key] = set()
        self._pins: dict[_Key, int] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def num_prepared(self) -> int:
        """Blocks whose prepare has not been completed."""
        return len(self._writing) + sum(self._pins.values())

    def lookup(self, group: int, block_hash: BlockHash) -> Lookup:
        if self._late():
            return Lookup.LATER
        return Lookup.HIT if (group, block_hash) in self._present else Lookup.MISS

    def prepare_load(self, group: int, block_hashes: Sequence[BlockHash]) -> bool:
        keys = [(group, block_hash) for block_hash in block_hashes]
        if any(key not in self._present for key in keys):
            return False
        for key in keys:
            self._pins[key] = self._pins.get(key, 0) + 1
        return True

    def complete_load(self, group: int, block_hashes: Sequence[BlockHash]) -> None:
        for block_hash in block_hashes:
            key = (group, block_hash)
            pins = self._pins.pop(key, 0)
            if not pins:
                raise IntegrityError(f"tier {self._name}: a load was completed that was not prepared")
            if pins > 1:
                self._pins[key] = pins - 1

    def prepare_store(self, group: int, block_hashes: Sequence[BlockHash]) -> tuple[BlockHash, ...]:
        wanted: list[BlockHash] = []
        for block_hash in block_hashes:
            key = (group, block_hash)
            if key not in self._present and key not in self._writing and self._make_room():
                self._writing.add(key)
                wanted.append(block_hash)
        return tuple(wanted)

    def _make_room(self) -> bool:
        if len(self._present) + len(self._writing) < self._capacity:
            return True
        victim = next((key for key in self._present if key not in self._pins), None)
        if victim is None:
            return False
        del self._present[victim]
        return True

    def complete_store(self, group: int, block_hashes: Sequence[BlockHash], ok: bool) -> None:
        for block_hash in block_hashes:
            key = (group, block_hash)
            if key not in self._writing:
                raise IntegrityError(f"tier {self._name}: a store was completed that was not prepared")
            self._writing.remove(key)
            if ok:
                self._present[key] = None
