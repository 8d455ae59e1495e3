"""StepPlan: all that an executor is told for one step. It carries changes, never state.

Ranks keep, per seat: the token ids, the block table of every group, and the number of computed tokens. From these
and a plan they derive positions and slots themselves, because only the device knows the token it sampled last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.types.kv import BlockId, TransferJob
from penstock.types.request import SamplingParams

Bitmasks = Sequence[bytes] | Callable[[], Sequence[bytes]]
"""Token masks, one bit per token id in little-endian 32-bit words; or a call that waits until they are filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A request takes a seat: for the first time, or again after a preemption.

    ``token_ids`` are all tokens known so far (prompt, and output of an earlier residence). ``num_computed`` of them
    are already in the blocks given here (prefix hit or loaded). ``block_ids[g]`` starts at table index
    ``first_block[g]``: earlier entries of a sliding or state group are out of reach and have no block.
    """

    seat: int
    request_id: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    num_computed: int
    sampling: SamplingParams
    block_ids: tuple[tuple[BlockId, ...], ...]
    first_block: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One step. Columns are parallel: entry r of each ``row_*`` tuple describes row r.

    Order of effects on a rank: ``dropped`` seats are cleared, ``admitted`` seats are filled, ``appended`` blocks are
    added, loads start, rows run, stores start. Plans run strictly in ``step_id`` order.

    A row computes ``row_num_tokens[r]`` known tokens from the seat's number of computed tokens on, then
    ``row_drafts[r]`` speculative ones. If ``row_samples[r]`` the row answers 0 to drafts + 1 tokens; with a > 0
    tokens the seat advances by num_tokens + a - 1, with none by num_tokens - 1 (the last token is computed again).
    Otherwise it answers no token and advances by num_tokens. The core has reserved blocks for the longest outcome.
    """

    step_id: int
    dropped: tuple[int, ...] = ()
    admitted: tuple[Admission, ...] = ()
    appended: tuple[tuple[int, int, tuple[BlockId, ...]], ...] = ()  # (seat, group, block ids at the table's end)
    row_seats: tuple[int, ...] = ()
    row_num_tokens: tuple[int, ...] = ()
    row_samples: tuple[bool, ...] = ()
    row_drafts: tuple[tuple[int, ...], ...] = ()  # empty tuple: no row has drafts
    masked_rows: tuple[int, ...] = ()  # rows whose token mask arrives late, through StepHandle.masks
    transfers: tuple[TransferJob, ...] = ()

    @property
    def is_empty(self) -> bool:
        """No rows: legal, and still applied (drops, transfers)."""
        return not self.row_seats
