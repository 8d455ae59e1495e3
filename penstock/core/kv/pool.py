"""One pool of blocks: free list, reference counts, cached blocks in eviction order. Knows neither requests nor groups.

A block is in exactly one place:
    free        no content, on the free list
    referenced  one or more tables, loads or stores count on it; sealed or not
    evictable   unreferenced but sealed: keeps its content until room is needed, least recently released first
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from penstock.errors import IntegrityError
from penstock.types.kv import BlockHash, BlockId


class BlockPool:
    """All operations are O(1) per block named."""

    __slots__ = ("_by_hash", "_evictable", "_free", "_hash_of", "_refs", "num_blocks", "num_evictions", "num_releases")

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a pool needs at least one block, got {num_blocks}")
        self.num_blocks = num_blocks
        self.num_evictions = 0
        self.num_releases = 0  # blocks that became available again; a blocked admission watches it
        self._free = list(range(num_blocks - 1, -1, -1))
        self._refs = [0] * num_blocks
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._by_hash: dict[BlockHash, BlockId] = {}
        self._evictable: OrderedDict[BlockId, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        return len(self._free) + len(self._evictable)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_available

    def lookup(self, block_hash: BlockHash) -> BlockId | None:
        return self._by_hash.get(block_hash)

    def is_evictable(self, block: BlockId) -> bool:
        return block in self._evictable

    def allocate(self, count: int) -> list[BlockId]:
        """``count`` blocks with one reference each; evicts as needed. The caller has checked ``num_available``."""
        free, refs = self._free, self._refs
        taken: list[BlockId] = []
        for _ in range(count):
            block = free.pop() if free else self._evict()
            refs[block] = 1
            taken.append(block)
        return taken

    def _evict(self) -> BlockId:
        block, _ = self._evictable.popitem(last=False)
        self._forget(block)
        self.num_evictions += 1
        return block

    def _forget(self, block: BlockId) -> None:
        block_hash = self._hash_of[block]
        if block_hash is not None:
            self._hash_of[block] = None
            del self._by_hash[block_hash]

    def acquire(self, blocks: Iterable[BlockId]) -> None:
        """One more reference on blocks that hold content: referenced or evictable ones."""
        refs, evictable = self._refs, self._evictable
        for block in blocks:
            if refs[block] == 0:
                del evictable[block]
            refs[block] += 1

    def release(self, blocks: Iterable[BlockId]) -> None:
        """One reference less. The first to be released is the first to be evicted."""
        refs = self._refs
        for block in blocks:
            left = refs[block] - 1
            if left < 0:
                raise IntegrityError(f"block {block} was released more often than acquired")
            refs[block] = left
            if left == 0:
                self.num_releases += 1
                if self._hash_of[block] is None:
                    self._free.append(block)
                else:
                    self._evictable[block] = None

    def seal(self, block: BlockId, block_hash: BlockHash) -> None:
        """Give a full, referenced block its identity. A block whose content is cached already stays anonymous."""
        if block_hash not in self._by_hash and self._hash_of[block] is None:
            self._by_hash[block_hash] = block
            self._hash_of[block] = block_hash

    def forget_unreferenced(self) -> None:
        """Drop every cached block that nobody references."""
        while self._evictable:
            block, _ = self._evictable.popitem(last=False)
            self._forget(block)
            self._free.append(block)

    def violations(self, expected_refs: Sequence[int]) -> list[str]:
        """What does not hold, given the references that tables and transfers should have. O(blocks)."""
        found: list[str] = []
        free = set(self._free)
        if len(free) != len(self._free):
            found.append("a block is on the free list twice")
        for block in range(self.num_blocks):
            refs, block_hash = self._refs[block], self._hash_of[block]
            if refs != expected_refs[block]:
                found.append(f"block {block} has {refs} references, tables and transfers make {expected_refs[block]}")
            places = (block in free) + (refs > 0) + (block in self._evictable)
            if places != 1:
                found.append(f"block {block} is in {places} of free, referenced, evictable")
            if block in free and block_hash is not None:
                found.append(f"free block {block} still has a hash")
            if block in self._evictable and block_hash is None:
                found.append(f"evictable block {block} has no hash")
            if block_hash is not None and self._by_hash.get(block_hash) != block:
                found.append(f"block {block} is sealed but the cache map names another block")
        if len(self._by_hash) != sum(h is not None for h in self._hash_of):
            found.append("the cache map names blocks that are not sealed")
        return found
