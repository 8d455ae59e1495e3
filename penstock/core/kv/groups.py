"""Block tables of one request, one per KV group, and the reach of a group. Knows neither pools nor requests."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from penstock.core.kv.prefix import ChainHasher, chain_root
from penstock.types.kv import BlockHash, BlockId, KvGroupSpec, Visibility

EVERYTHING = sys.maxsize


class GroupGeometry:
    """A group spec reduced to the two numbers that bookkeeping needs, plus its pool and hasher.

    ``reach``: computing position p reads positions from p - reach + 1 on. A window reaches its own length. A running
    state reaches 2, because p needs the block that holds the state after p - 1. Full attention reaches everything.
    """

    __slots__ = ("hasher", "pool", "reach", "size", "spec")

    def __init__(self, spec: KvGroupSpec) -> None:
        self.spec = spec
        self.size = spec.tokens_per_block
        self.pool = spec.pool
        self.hasher = ChainHasher(self.size)
        if spec.visibility is Visibility.ALL:
            self.reach = EVERYTHING
        elif spec.visibility is Visibility.STATE:
            self.reach = 2
        else:
            assert spec.window is not None
            self.reach = spec.window

    def first_needed(self, computed: int) -> int:
        """Table index of the lowest block that position ``computed`` or a later one can read or write."""
        return max(0, computed - self.reach + 1) // self.size

    def blocks_to(self, num_tokens: int) -> int:
        """Table length that covers ``num_tokens`` tokens."""
        return -(-num_tokens // self.size)

    def peak_blocks(self, num_tokens: int, chunk: int) -> int:
        """Most blocks held at once while ``num_tokens`` are computed in chunks, two of them in flight."""
        total = self.blocks_to(num_tokens)
        if self.reach == EVERYTHING:
            return total
        return min(total, self.blocks_to(self.reach + 2 * chunk) + 1)


class GroupTable:
    """``blocks[i]`` covers the tokens of block i; entries below ``first`` are out of reach and hold -1.

    ``sealed`` blocks of the table are full of confirmed tokens (and cached, if caching is on).
    """

    __slots__ = ("blocks", "first", "sealed")

    def __init__(self) -> None:
        self.blocks: list[BlockId] = []
        self.first = 0
        self.sealed = 0

    @property
    def live(self) -> Sequence[BlockId]:
        return self.blocks[self.first :]


class RequestBlocks:
    """KV of one request: a table and a hash chain per group.

    ``reserved`` tokens are covered by every table. ``next_event`` is the number of confirmed tokens at which some
    block of some group becomes full or leaves its reach; below it, a step has nothing to do here. Chains outlive
    a residence, because the tokens they cover never change.
    """

    __slots__ = ("chains", "next_event", "reserved", "roots", "tables")

    def __init__(self, roots: Sequence[BlockHash]) -> None:
        self.roots = roots
        self.chains: list[list[BlockHash]] = [[] for _ in roots]
        self.tables: list[GroupTable] = [GroupTable() for _ in roots]
        self.reserved = 0
        self.next_event = 0


def make_roots(
    groups: Sequence[GroupGeometry], model_identity: str, cache_salt: str, extra_keys: Sequence[str]
) -> tuple[BlockHash, ...]:
    return tuple(chain_root(model_identity, group.spec, cache_salt, extra_keys) for group in groups)
