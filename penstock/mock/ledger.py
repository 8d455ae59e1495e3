"""What every KV entry of a mock device holds, and whether a plan may be run: catches the core's mistakes.

An entry holds a digest of all tokens up to the last one written into it, so that a wrong, stale, overwritten or
never-written block is noticed by the first row that reads it. Rejected drafts and unfinished loads leave garbage.
Knows plans and geometry, not the core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.errors import IntegrityError
from penstock.types.kv import BlockHash, BlockId, KvCapacity, KvGroupSpec, TransferJob, TransferKind, Visibility
from penstock.types.plan import Admission, StepPlan

GARBAGE = -1
_Entries = dict[int, int]  # entry in block -> digest


def reach_of(spec: KvGroupSpec, position: int) -> int:
    """Lowest position whose KV the token at ``position`` reads; ``position`` itself when none before it."""
    if spec.visibility is Visibility.ALL:
        return 0
    if spec.visibility is Visibility.STATE:
        return max(0, position - 1)
    assert spec.window is not None
    return max(0, position - spec.window + 1)


@dataclass(slots=True)
class _Seat:
    request_id: int
    tokens: list[int]
    computed: int
    tables: list[list[BlockId]]  # by absolute table index; -1 where the plan gave none
    digests: list[int] = field(default_factory=list)

    def digest(self, length: int) -> int:
        """Of the first ``length`` tokens."""
        while len(self.digests) < length:
            before = self.digests[-1] if self.digests else 0
            self.digests.append(hash((before, self.tokens[len(self.digests)])) & (1 << 62) - 1)
        return self.digests[length - 1]


class KvLedger:
    """Raises IntegrityError when a plan breaks a rule of StepPlan, or a row would read what its request never wrote."""

    def __init__(self, capacity: KvCapacity, num_seats: int | None = None) -> None:
        self._groups = capacity.groups
        self._num_blocks = capacity.num_blocks
        self._num_seats = num_seats
        self._seats: dict[int, _Seat] = {}
        self._contents: list[dict[BlockId, _Entries]] = [{} for _ in capacity.num_blocks]
        self._users: dict[tuple[int, BlockId], set[tuple[int, int, int]]] = {}  # (seat, group, table index)
        self._stored: dict[tuple[str, int, BlockHash], _Entries] = {}
        self._next_step = 0

    # -- seats and tables ----------------------------------------------------------------------------------------

    def open_step(self, plan: StepPlan) -> None:
        """Everything of a plan that comes before its rows."""
        self._require(plan.step_id == self._next_step, f"step {plan.step_id} came when {self._next_step} was due")
        self._next_step += 1
        columns = {len(plan.row_seats), len(plan.row_num_tokens), len(plan.row_samples)}
        self._require(len(columns) == 1, "row columns differ in length")
        self._require(len(plan.row_drafts) in (0, len(plan.row_seats)), "row_drafts is neither empty nor complete")
        self._require(len(set(plan.row_seats)) == len(plan.row_seats), "a seat has two rows in one step")
        for seat in plan.dropped:
            self._drop(seat)
        for admission in plan.admitted:
            self._admit(admission)
        for seat, group, blocks in plan.appended:
            self._append(seat, group, blocks)
        for seat in plan.row_seats:
            self._require(seat in self._seats, f"a row names seat {seat}, which is empty")
        for job in plan.transfers:
            if job.kind is TransferKind.LOAD:
                for block in job.block_ids:
                    self._contents[self._groups[job.group].pool][block] = {}

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise IntegrityError(f"plan refused by the mock device: {message}")

    def _drop(self, seat: int) -> None:
        state = self._seats.pop(seat, None)
        self._require(state is not None, f"seat {seat} is dropped but empty")
        assert state is not None
        for group, table in enumerate(state.tables):
            for index, block in enumerate(table):
                if block >= 0:
                    self._users[self._groups[group].pool, block].discard((seat, group, index))

    def _admit(self, admission: Admission) -> None:
        seat = admission.seat
        self._require(seat not in self._seats, f"seat {seat} is filled twice")
        in_range = seat >= 0 and (self._num_seats is None or seat < self._num_seats)
        self._require(in_range, f"seat {seat} does not exist")
        others = {state.request_id for state in self._seats.values()}
        self._require(admission.request_id not in others, f"request {admission.request_id} has two seats")
        tables = [[-1] * first for first in admission.first_block]
        self._require(len(tables) == len(self._groups) == len(admission.block_ids), "not one table per group")
        self._require(
            0 <= admission.num_computed < len(admission.token_ids),
            f"request {admission.request_id}: nothing to compute",
        )
        self._seats[seat] = _Seat(admission.request_id, list(admission.token_ids), admission.num_computed, tables)
        for group, blocks in enumerate(admission.block_ids):
            self._append(seat, group, blocks)

    def _append(self, seat: int, group: int, blocks: Sequence[BlockId]) -> None:
        self._require(seat in self._seats, f"blocks are appended to seat {seat}, which is empty")
        table, pool = self._seats[seat].tables[group], self._groups[group].pool
        for block in blocks:
            self._require(0 <= block < self._num_blocks[pool], f"block {block} is not in pool {pool}")
            self._users.setdefault((pool, block), set()).add((seat, group, len(table)))
            table.append(block)

    # -- rows ----------------------------------------------------------------------------------------------------

    def run_row(self, seat: int, num_tokens: int, num_drafts: int, samples: bool, accepted: Sequence[int]) -> None:
        """Check what the row reads and where it writes, then write and advance the seat."""
        state = self._seats[seat]
        start, known = state.computed, len(state.tokens)
        self._require(num_tokens >= 1, f"seat {seat}: a row without tokens")
        if samples:
            message = f"seat {seat}: a sampling row computes {num_tokens} of {known - start} known tokens"
            self._require(num_tokens == known - start, message)
        else:
            self._require(not num_drafts and start + num_tokens <= known, f"seat {seat}: more tokens than are known")
        state.tokens += accepted
        valid = start + num_tokens + (len(accepted) - 1 if samples else 0)
        for group, spec in enumerate(self._groups):
            self._check_reads(state, group, spec, start)
            self._write(seat, state, group, spec, start, start + num_tokens + num_drafts, valid)
        state.computed = valid

    def _check_reads(self, state: _Seat, group: int, spec: KvGroupSpec, start: int) -> None:
        low = reach_of(spec, start)
        if low >= start:
            return
        size, tokens_per_entry = spec.tokens_per_block, spec.tokens_per_entry
        if spec.visibility is Visibility.STATE:
            tokens_per_entry = size
        table, contents = state.tables[group], self._contents[spec.pool]
        for entry in range(low // tokens_per_entry, -(-start // tokens_per_entry)):
            end = min((entry + 1) * tokens_per_entry, start)
            block = table[entry * tokens_per_entry // size]
            found = contents.get(block, {}).get(entry % (size // tokens_per_entry))
            if found != state.digest(end):
                raise IntegrityError(
                    f"request {state.request_id} reads token {end - 1} of group {spec.name} in block {block}, "
                    "which does not hold it"
                )

    def _write(self, seat: int, state: _Seat, group: int, spec: KvGroupSpec, start: int, end: int, valid: int) -> None:
        size, table = spec.tokens_per_block, state.tables[group]
        covered = len(table) * size
        self._require(end <= covered, f"seat {seat} writes {end} tokens, group {spec.name} has blocks for {covered}")
        per_entry = size if spec.visibility is Visibility.STATE else spec.tokens_per_entry
        for index in range(start // size, (end - 1) // size + 1):
            self._check_sole_writer(seat, group, index, table[index])
        for entry in range(start // per_entry, (end - 1) // per_entry + 1):
            block = table[entry * per_entry // size]
            entries = self._contents[spec.pool].setdefault(block, {})
            last = min((entry + 1) * per_entry, valid)
            # Devices roll back what rejected tokens did to an entry or a state that also holds accepted ones.
            entries[entry % (size // per_entry)] = state.digest(last) if last > entry * per_entry else GARBAGE

    def _check_sole_writer(self, seat: int, group: int, index: int, block: BlockId) -> None:
        pool = self._groups[group].pool
        for other_seat, other_group, other_index in self._users[pool, block]:
            if (other_seat, other_group, other_index) == (seat, group, index):
                continue
            other, spec = self._seats[other_seat], self._groups[other_group]
            reach = reach_of(spec, other.computed) // spec.tokens_per_block
            self._require(other_index < reach, f"seats {seat} and {other_seat} share block {block}, and one writes it")

    # -- transfers -----------------------------------------------------------------------------------------------

    def finish_transfer(self, job: TransferJob, ok: bool) -> None:
        """Copies happen as late as they may, when they are reported: who frees a block too early corrupts it."""
        spec = self._groups[job.group]
        contents = self._contents[spec.pool]
        num_entries = 1 if spec.visibility is Visibility.STATE else spec.entries_per_block
        for block, block_hash in zip(job.block_ids, job.block_hashes, strict=True):
            key = (job.tier, job.group, block_hash)
            if job.kind is TransferKind.STORE and ok:
                # Only this group's entries: a pool mate may have left more in the block.
                found = {entry: contents.get(block, {}).get(entry, GARBAGE) for entry in range(num_entries)}
                self._require(GARBAGE not in found.values(), f"block {block} is stored but not full")
                held = self._stored.setdefault(key, found)
                self._require(held == found, f"block {block} is stored under the hash of another")
            elif job.kind is TransferKind.LOAD and ok:
                self._require(key in self._stored, f"a load asks {job.tier} for a block that it never got")
                contents[block] = dict(self._stored[key])
            elif job.kind is TransferKind.LOAD:
                contents[block] = {}
