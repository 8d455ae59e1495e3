"""The KV manager: prefix look-up, reservation, sealing and release over all groups. Knows neither plans nor seats.

Per request: ``open``, then for each residence ``lookup`` and ``attach``, any number of ``reserve``, ``seal`` and
``free_passed``, and ``release``. ``lookup`` changes no block. ``reserve`` is all or nothing over all groups. ``seal``
and ``free_passed`` take confirmed tokens only: rows in flight start at or after them, so that what is sealed is never
written again, and what is freed is never read again by a plan that was made earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.core.kv.groups import EVERYTHING, GroupGeometry, GroupTable, RequestBlocks, make_roots
from penstock.core.kv.pool import BlockPool
from penstock.types.kv import BlockHash, BlockId, KvCapacity

Present = Callable[[int, BlockHash], bool]  # (group, hash)
Appended = list[tuple[int, tuple[BlockId, ...]]]  # (group, new block ids)


@dataclass(frozen=True, slots=True)
class SealedBlock:
    """A block that has just become full of confirmed tokens."""

    group: int
    block: BlockId
    block_hash: BlockHash


class KvManager:
    """Owns the pools. ``caching`` off means that nothing is hashed, sealed or hit."""

    def __init__(self, capacity: KvCapacity, *, model_identity: str, caching: bool = True) -> None:
        names = [spec.name for spec in capacity.groups]
        if len(set(names)) != len(names):
            raise ValueError(f"KV group names must differ, got {', '.join(names)}")
        self.groups = tuple(GroupGeometry(spec) for spec in capacity.groups)
        self.pools = tuple(BlockPool(num) for num in capacity.num_blocks)
        self.caching = caching
        self._model_identity = model_identity

    @property
    def usage(self) -> float:
        """Share of referenced blocks in the fullest pool."""
        return max((pool.num_used / pool.num_blocks for pool in self.pools), default=0.0)

    @property
    def num_releases(self) -> int:
        return sum(pool.num_releases for pool in self.pools)

    def open(self, cache_salt: str, extra_keys: Sequence[str]) -> RequestBlocks:
        if self.caching:
            return RequestBlocks(make_roots(self.groups, self._model_identity, cache_salt, extra_keys))
        return RequestBlocks((b"",) * len(self.groups))

    def can_ever_hold(self, num_tokens: int) -> bool:
        """False when this many tokens do not fit even into empty pools, one token per step."""
        needs = [0] * len(self.pools)
        for group in self.groups:
            total = group.blocks_to(num_tokens)
            if group.reach != EVERYTHING:
                total = min(total, group.blocks_to(group.reach))
            needs[group.pool] += total
        return all(need <= pool.num_blocks for need, pool in zip(needs, self.pools, strict=True))

    # -- prefix hits ---------------------------------------------------------------------------------------------

    def lookup(self, blocks: RequestBlocks, tokens: Sequence[int], limit: int) -> int:
        """Longest prefix of at most ``limit`` tokens whose needed blocks are cached in every group."""
        return self.longest_prefix(blocks, tokens, limit, self.is_cached) if self.caching else 0

    def is_cached(self, group: int, block_hash: BlockHash) -> bool:
        return self.pools[self.groups[group].pool].lookup(block_hash) is not None

    def longest_prefix(self, blocks: RequestBlocks, tokens: Sequence[int], limit: int, present: Present) -> int:
        """As ``lookup``, for any notion of presence. Groups shorten the candidate in turn until all agree."""
        for group, root, chain in zip(self.groups, blocks.roots, blocks.chains, strict=True):
            group.hasher.extend(root, chain, tokens, limit // group.size)
        length = limit
        while length > 0:
            before = length
            for g in range(len(self.groups)):
                length = self._shorten(g, blocks.chains[g], length, present)
            if length == before:
                break
        return length

    def _shorten(self, g: int, chain: Sequence[BlockHash], length: int, present: Present) -> int:
        group = self.groups[g]
        num_blocks = length // group.size
        if group.reach == EVERYTHING:
            for index in range(num_blocks):
                if not present(g, chain[index]):
                    return index * group.size
            return num_blocks * group.size
        index = num_blocks - 1
        # Going down from the candidate's last block: a miss at i rules out every candidate above i blocks.
        while index >= group.first_needed(num_blocks * group.size):
            if not present(g, chain[index]):
                num_blocks = index
            index -= 1
        return num_blocks * group.size

    def reach_hashes(self, blocks: RequestBlocks, g: int, length: int) -> Sequence[BlockHash]:
        """Hashes of the blocks of group g that a hit of ``length`` tokens needs."""
        group = self.groups[g]
        return blocks.chains[g][group.first_needed(length) : length // group.size]

    def attach(self, blocks: RequestBlocks, length: int) -> None:
        """Reference the cached blocks of a hit of ``length`` tokens, just looked up. Tables are empty before."""
        for g, group in enumerate(self.groups):
            pool, table = self.pools[group.pool], blocks.tables[g]
            hits = [self._cached(pool, block_hash) for block_hash in self.reach_hashes(blocks, g, length)]
            pool.acquire(hits)
            table.first = group.first_needed(length)
            table.blocks = [-1] * table.first + hits
            table.sealed = length // group.size
        self._refresh(blocks)

    @staticmethod
    def _cached(pool: BlockPool, block_hash: BlockHash) -> BlockId:
        block = pool.lookup(block_hash)
        assert block is not None
        return block

    # -- room ----------------------------------------------------------------------------------------------------

    def has_room(self, blocks: RequestBlocks, length: int, num_tokens: int, chunk: int, spare: Sequence[int]) -> bool:
        """Whether a request with a hit of ``length`` can be carried to ``num_tokens``, leaving ``spare`` per pool."""
        needs = list(spare)
        for g, group in enumerate(self.groups):
            pool = self.pools[group.pool]
            hits = self.reach_hashes(blocks, g, length) if length else ()
            in_use = sum(not pool.is_evictable(self._cached(pool, block_hash)) for block_hash in hits)
            needs[group.pool] += max(group.peak_blocks(num_tokens, chunk), len(hits)) - in_use
        return all(need <= pool.num_available for need, pool in zip(needs, self.pools, strict=True))

    def add_growth(self, needs: list[int], blocks: RequestBlocks, num_tokens: int, chunk: int) -> None:
        """Add to ``needs`` per pool the blocks that a resident request still lacks for ``num_tokens``."""
        for group, table in zip(self.groups, blocks.tables, strict=True):
            held = len(table.blocks) - table.first
            needs[group.pool] += max(0, group.peak_blocks(num_tokens, chunk) - held)

    def reserve(self, blocks: RequestBlocks, num_tokens: int) -> Appended | None:
        """Extend every table to ``num_tokens`` tokens. None, and nothing changed, when the blocks are not there."""
        needs = [0] * len(self.pools)
        missing: list[tuple[int, int]] = []
        for g, group in enumerate(self.groups):
            count = -(-num_tokens // group.size) - len(blocks.tables[g].blocks)
            if count > 0:
                needs[group.pool] += count
                missing.append((g, count))
        for need, pool in zip(needs, self.pools, strict=True):
            if need > pool.num_available:
                return None
        appended: Appended = []
        for g, count in missing:
            new = self.pools[self.groups[g].pool].allocate(count)
            blocks.tables[g].blocks += new
            appended.append((g, tuple(new)))
        blocks.reserved = min(
            len(table.blocks) * group.size for group, table in zip(self.groups, blocks.tables, strict=True)
        )
        return appended

    # -- progress ------------------------------------------------------------------------------------------------

    def seal(self, blocks: RequestBlocks, tokens: Sequence[int], computed: int) -> list[SealedBlock]:
        """Give an identity to every block that ``computed`` confirmed tokens have filled. Returns the new ones.

        They stay referenced until ``free_passed``, so that a store can be started from them in between.
        """
        news: list[SealedBlock] = []
        for g, group in enumerate(self.groups):
            table = blocks.tables[g]
            full = computed // group.size
            if full > table.sealed:
                if self.caching:
                    self._seal(g, blocks, tokens, full, news)
                table.sealed = full
        return news

    def free_passed(self, blocks: RequestBlocks, computed: int) -> None:
        """Release what no position from ``computed`` on can read; to be called after ``seal``."""
        for group, table in zip(self.groups, blocks.tables, strict=True):
            first = group.first_needed(computed)
            if first > table.first:
                self._free_below(first, table, self.pools[group.pool])
        self._refresh(blocks)

    def _seal(self, g: int, blocks: RequestBlocks, tokens: Sequence[int], full: int, news: list[SealedBlock]) -> None:
        group, table, chain = self.groups[g], blocks.tables[g], blocks.chains[g]
        pool = self.pools[group.pool]
        group.hasher.extend(blocks.roots[g], chain, tokens, full)
        for index in range(max(table.sealed, table.first), full):
            block = table.blocks[index]
            pool.seal(block, chain[index])
            news.append(SealedBlock(g, block, chain[index]))

    @staticmethod
    def _free_below(first: int, table: GroupTable, pool: BlockPool) -> None:
        pool.release(table.blocks[table.first : first])
        table.blocks[table.first : first] = [-1] * (first - table.first)
        table.first = first

    def _refresh(self, blocks: RequestBlocks) -> None:
        event = EVERYTHING
        for group, table in zip(self.groups, blocks.tables, strict=True):
            event = min(event, (table.sealed + 1) * group.size)
            if group.reach != EVERYTHING:
                event = min(event, (table.first + 1) * group.size + group.reach - 1)
        blocks.next_event = event

    def release(self, blocks: RequestBlocks) -> None:
        """Give up every table. The ends of prefixes go first, so that they are evicted first."""
        for group, table in zip(self.groups, blocks.tables, strict=True):
            self.pools[group.pool].release(reversed(table.live))
            table.blocks, table.first, table.sealed = [], 0, 0
        blocks.reserved = blocks.next_event = 0

    def forget_unreferenced(self) -> None:
        for pool in self.pools:
            pool.forget_unreferenced()
