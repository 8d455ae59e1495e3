"""KV geometry and identity: group specs, pools, block hashes, transfers. Integers and bytes; no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

BlockId = int
BlockHash = bytes  # 16 bytes: BLAKE2b-128, the same in every process and after every restart


class Visibility(Enum):
    """Which earlier tokens a group's layers read when they compute the token at position p."""

    ALL = "all"  # every position up to p
    WINDOW = "window"  # positions p - window + 1 up to p
    STATE = "state"  # only the running state after position p - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroupSpec:
    """One KV geometry shared by some layers. Each request has one block table per group.

    Block i of a table covers tokens [i * tokens_per_block, (i + 1) * tokens_per_block). A slot is one entry;
    an entry stands for ``tokens_per_entry`` tokens (more than one in compressed caches). For STATE groups block i
    holds the state after the last token computed in its range; a sealed one is a checkpoint.
    A prefix of length L can be a hit only if L is a multiple of ``tokens_per_block`` and the blocks that position L
    would read are cached: all of them (ALL), those that overlap [L - window + 1, L) (WINDOW), the last one (STATE).
    ``pool`` is the index of the pool that the group draws from; groups of equal ``bytes_per_block`` may share one.
    """

    name: str
    visibility: Visibility
    entries_per_block: int
    bytes_per_block: int
    tokens_per_entry: int = 1
    window: int | None = None  # tokens; only for WINDOW
    pool: int = 0

    def __post_init__(self) -> None:
        if (self.window is not None) != (self.visibility is Visibility.WINDOW):
            raise ValueError(f"group {self.name}: window is given exactly when visibility is WINDOW")
        if min(self.entries_per_block, self.tokens_per_entry, self.window or 1) < 1 or self.bytes_per_block < 0:
            raise ValueError(f"group {self.name}: sizes must be positive")

    @property
    def tokens_per_block(self) -> int:
        return self.entries_per_block * self.tokens_per_entry


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCapacity:
    """What an executor offers: the groups of the model and the number of blocks in each pool.

    Block ids run from 0 to ``num_blocks[pool] - 1``. Padding never needs a block: executors keep their own scratch.
    """

    groups: tuple[KvGroupSpec, ...]
    num_blocks: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of all blocks; groups of one pool have blocks of equal size."""
        size = {group.pool: group.bytes_per_block for group in self.groups}
        return sum(count * size[pool] for pool, count in enumerate(self.num_blocks))


class TransferKind(Enum):
    LOAD = "load"  # from a tier into device blocks
    STORE = "store"  # from device blocks into a tier


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferJob:
    """A set of blocks to copy between the device and a tier; reported once, by ``job_id``, in a StepResult."""

    job_id: int
    kind: TransferKind
    tier: str
    group: int
    block_ids: tuple[BlockId, ...]
    block_hashes: tuple[BlockHash, ...]
