"""What a rank remembers per seat between steps: token ids, lengths, block tables. Knows no tensor and no sampler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from penstock.types.kv import KvGroupSpec
from penstock.types.plan import Admission, StepPlan

Ints = npt.NDArray[np.int64]

Appended = tuple[int, int, Sequence[int]]  # seat, table index of the first, block ids

# A row may run past max_model_len while the core learns, some plans later, that the request has ended.
SPARE_TOKENS = 64


def max_seat_tokens(max_model_len: int) -> int:
    """Tokens that a seat has room for."""
    return max_model_len + SPARE_TOKENS


def table_width(max_model_len: int, group: KvGroupSpec) -> int:
    """Entries of a seat's block table."""
    return max_seat_tokens(max_model_len) // group.tokens_per_block + 1


class SeatState:
    """Plain arrays indexed by seat; plans change them, results advance them. Owned by one runner, used by one thread.

    ``num_known[s]`` token ids of seat s are known, ``num_computed[s]`` of them have their KV in blocks. Table entries
    without a block are 0: attention masks what it reads there. ``tables_version`` changes with every change of a table.
    With ``journal`` the blocks that were appended are kept for ``take_appended``.
    """

    def __init__(
        self, max_num_seqs: int, max_model_len: int, groups: Sequence[KvGroupSpec], *, journal: bool = False
    ) -> None:
        self.groups = tuple(groups)
        self.max_tokens = max_seat_tokens(max_model_len)
        self.tokens = np.zeros((max_num_seqs, self.max_tokens), dtype=np.int32)
        self.num_known: Ints = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_computed: Ints = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_prompt: Ints = np.zeros(max_num_seqs, dtype=np.int64)
        self.tables: tuple[Ints, ...] = tuple(
            np.zeros((max_num_seqs, table_width(max_model_len, group)), dtype=np.int64) for group in groups
        )
        self.tables_version = 0
        self._table_ends: Ints = np.zeros((len(self.groups), max_num_seqs), dtype=np.int64)
        self._journal: tuple[list[Appended], ...] | None = tuple([] for _ in self.groups) if journal else None

    def apply(self, plan: StepPlan) -> None:
        """The changes of a plan in their order: drops, admissions, appended blocks."""
        for seat in plan.dropped:
            self.num_known[seat] = self.num_computed[seat] = 0
        for admission in plan.admitted:
            self._admit(admission)
        for seat, group, block_ids in plan.appended:
            self._append(seat, group, block_ids)

    def _admit(self, admission: Admission) -> None:
        seat, known = admission.seat, len(admission.token_ids)
        if known > self.max_tokens:
            raise ValueError(f"request {admission.request_id} has {known} tokens, a seat holds {self.max_tokens}")
        self.tokens[seat, :known] = admission.token_ids
        self.num_known[seat] = known
        self.num_computed[seat] = admission.num_computed
        self.num_prompt[seat] = admission.num_prompt_tokens
        for group, (block_ids, first) in enumerate(zip(admission.block_ids, admission.first_block, strict=True)):
            self.tables[group][seat, : self._table_ends[group, seat]] = 0
            self._table_ends[group, seat] = first
            self._append(seat, group, block_ids)

    def _append(self, seat: int, group: int, block_ids: Sequence[int]) -> None:
        begin = int(self._table_ends[group, seat])
        end = begin + len(block_ids)
        if end > self.tables[group].shape[1]:
            raise ValueError(f"seat {seat}: the table of group {self.groups[group].name} cannot hold {end} blocks")
        self.tables[group][seat, begin:end] = block_ids
        self._table_ends[group, seat] = end
        self.tables_version += 1
        if self._journal is not None and block_ids:
            self._journal[group].append((seat, begin, block_ids))

    def take_appended(self) -> tuple[list[Appended], ...]:
        """What was appended to the tables of each group since the last call, in order."""
        assert self._journal is not None
        taken = self._journal
        self._journal = tuple([] for _ in self.groups)
        return taken

    def place_drafts(self, seat: int, drafts: Sequence[int]) -> None:
        """Write drafts behind the known tokens, where the step reads its token ids; they do not become known."""
        known = int(self.num_known[seat])
        self.tokens[seat, known : known + len(drafts)] = drafts

    def advance(self, seats: Ints, num_tokens: Ints, answers: Sequence[Sequence[int]], sampled: Sequence[bool]) -> None:
        """Move every row's seat behind what it computed, and append the tokens that it answered."""
        given = np.fromiter(map(len, answers), dtype=np.int64, count=len(answers))
        self.num_computed[seats] += num_tokens + np.where(sampled, given - 1, 0)
        if (given <= 1).all():
            ones = given == 1
            at = seats[ones]
            self.tokens[at, self.num_known[at]] = [tokens[0] for tokens in answers if tokens]
        else:
            for seat, tokens in zip(seats.tolist(), answers, strict=True):
                self.place_drafts(seat, tokens)
        self.num_known[seats] += given

    def advance_expected(self, seats: Ints, num_tokens: Ints, sampling: Ints) -> None:
        """``advance`` before the answers are there: the seats ``sampling`` will each get one token, written later."""
        self.num_computed[seats] += num_tokens
        self.num_known[sampling] += 1

    def take_back(self, seats: Ints) -> None:
        """The last token of each seat, which was expected, has not come."""
        self.num_known[seats] -= 1
        self.num_computed[seats] -= 1

    def advance_decode(self, seats: Ints, token_ids: Ints) -> None:
        """``advance`` for rows of one token that all answered one token: token_ids [rows]."""
        known = self.num_known[seats]
        self.tokens[seats, known] = token_ids
        self.num_computed[seats] = known
        self.num_known[seats] = known + 1
