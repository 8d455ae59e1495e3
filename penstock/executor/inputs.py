"""From a plan to the tensors of one step. Knows no model; does no work per token in Python.

Everything lies at fixed addresses in fixed strides, so that a step which was recorded finds its inputs where they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from penstock.attention.contract import GroupStep
from penstock.errors import IntegrityError
from penstock.executor.seats import Ints, SeatState
from penstock.types.plan import StepPlan


@dataclass(frozen=True, slots=True)
class ForwardInputs:
    """What the model reads. ``asked`` are the batch positions whose logits are wanted, None for all in order."""

    token_ids: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    groups: tuple[GroupStep, ...]
    asked: torch.Tensor | None  # [asked]

    def with_tokens(self, token_ids: torch.Tensor) -> ForwardInputs:
        return ForwardInputs(token_ids, self.positions, self.groups, self.asked)


@dataclass(frozen=True, slots=True)
class StepShape:
    """All that the shapes of a step's inputs follow from."""

    num_tokens: int
    num_rows: int
    num_asked: int


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Tensors are views of persistent memory: valid until the next step is built.

    Entry r of the arrays belongs to row r; the tokens of row r are [query_start[r], query_start[r + 1]) of the batch,
    the last ``num_drafts[r]`` of them speculative. Entry i of what was asked is for row ``asked_rows[i]`` after
    ``asked_places[i]`` drafts, in order of rows. ``decodes``: every row is one token that is sampled behind.
    """

    shape: StepShape
    make_forward: Callable[[], ForwardInputs]  # a step that was recorded does without
    seats: Ints
    starts: Ints
    num_tokens: Ints
    num_drafts: Ints
    query_start: Ints
    asked_rows: Ints
    asked_places: Ints
    decodes: bool = False

    @property
    def forward(self) -> ForwardInputs:
        """What the model reads when the step is computed eagerly."""
        return self.make_forward()


class StepBuffer:
    """int64 memory of a fixed place, seen by torch and by numpy alike. Moves when a step needs more than ever."""

    def __init__(self, size: int) -> None:
        self.tensor = torch.zeros(size, dtype=torch.int64)
        self.array: Ints = self.tensor.numpy()

    def grow(self, size: int) -> bool:
        """Make room for ``size`` entries; True when that moved it."""
        if size <= len(self.array):
            return False
        self.tensor = torch.zeros(max(size, 2 * len(self.array)), dtype=torch.int64)
        self.array = self.tensor.numpy()
        return True


class TableBuffer:
    """The block tables of one group's rows [max rows, max blocks], and which tables they are copies of."""

    def __init__(self, rows: int, width: int) -> None:
        self.tensor = torch.zeros(rows, width, dtype=torch.int64)
        self.array: Ints = self.tensor.numpy()
        self.filled = 0  # columns that are up to date

    def fill(self, tables: Ints, seats: Ints, width: int) -> None:
        """Copy ``width`` columns of the seats' tables, unless they are there. What lies behind them stays as it is."""
        if width > self.filled and self.array.shape[1]:
            self.array[: len(seats), :width] = tables[seats, :width]
            self.filled = width


class InputBuilder:
    """Owns the persistent tensors that a step reads; ``build`` fills them from the seats' state.

    ``generation`` changes when a tensor has moved. Without ``tables`` the steps have empty block tables.
    """

    def __init__(
        self, seats: SeatState, max_num_seqs: int, max_num_batched_tokens: int, *, tables: bool = True
    ) -> None:
        self._seats = seats
        self._token_ids = StepBuffer(max_num_batched_tokens)
        self._positions = StepBuffer(max_num_batched_tokens)
        self._query_start = StepBuffer(max_num_seqs + 1)
        self._kv_lens = StepBuffer(max_num_seqs)
        self._asked = StepBuffer(max_num_batched_tokens)
        self._slots = [StepBuffer(max_num_batched_tokens) for _ in seats.groups]
        self._tables = [TableBuffer(max_num_seqs, table.shape[1] if tables else 0) for table in seats.tables]
        self._ramp: Ints = np.arange(max_num_seqs + 1, dtype=np.int64)
        self._ones: Ints = np.ones(max_num_seqs, dtype=np.int64)
        self._zeros: Ints = np.zeros(max_num_seqs, dtype=np.int64)
        self._row_seats: tuple[int, ...] = ()  # of the last step
        self._seat_array: Ints = np.zeros(0, dtype=np.int64)
        self._tables_version = -1
        self.generation = 0

    def build(self, plan: StepPlan) -> StepInputs:
        """The rows of a plan that has been applied to the seats; at least one row.

        Raises IntegrityError when a row asks for tokens that are not known.
        """
        state = self._seats
        if plan.row_seats != self._row_seats or state.tables_version != self._tables_version:
            self._row_seats, self._tables_version = plan.row_seats, state.tables_version
            self._seat_array = np.array(plan.row_seats, dtype=np.int64)
            for table in self._tables:
                table.filled = 0
        if all(plan.row_samples) and max(plan.row_num_tokens) == 1 and not any(plan.row_drafts):
            return self._build_decode(plan)
        return self._build_any(plan)

    def places(self, shape: StepShape) -> ForwardInputs:
        """Where every step of a shape finds its inputs: with whole tables, and the largest lengths that it may have.

        Tables hold 0 or anything behind the blocks of a row.
        """
        return self._views(shape, shape.num_tokens, self._seats.max_tokens)

    def _views(self, shape: StepShape, max_query_len: int, max_kv_len: int) -> ForwardInputs:
        total, num_rows = shape.num_tokens, shape.num_rows
        positions = self._positions.tensor[:total]
        query_start, kv_lens = self._query_start.tensor[: num_rows + 1], self._kv_lens.tensor[:num_rows]
        groups = tuple(
            GroupStep(
                query_start=query_start,
                kv_lens=kv_lens,
                block_table=table.tensor[:num_rows, : -(-max_kv_len // spec.tokens_per_block)],
                slots=slots.tensor[:total],
                positions=positions,
                max_query_len=max_query_len,
                max_kv_len=max_kv_len,
                block_tokens=spec.tokens_per_block,
            )
            for spec, table, slots in zip(self._seats.groups, self._tables, self._slots, strict=True)
        )
        asked = None if shape.num_asked == total else self._asked.tensor[: shape.num_asked]
        return ForwardInputs(self._token_ids.tensor[:total], positions, groups, asked)

    def _build_decode(self, plan: StepPlan) -> StepInputs:
        state, seats, num_rows = self._seats, self._seat_array, len(plan.row_seats)
        starts = state.num_computed[seats]
        kv_lens = np.add(starts, 1, out=self._kv_lens.array[:num_rows])
        known = state.num_known[seats]
        if not np.array_equal(kv_lens, known):
            _refuse_unknown(plan, kv_lens, known)
        self._positions.array[:num_rows] = starts
        self._token_ids.array[:num_rows] = state.tokens[seats, starts]
        ramp, ones, zeros = self._ramp[: num_rows + 1], self._ones[:num_rows], self._zeros[:num_rows]
        self._query_start.array[: num_rows + 1] = ramp
        max_kv_len = int(kv_lens.max())
        for group, spec in enumerate(state.groups):
            block_tokens = spec.tokens_per_block
            blocks, slots = starts // block_tokens, self._slots[group].array[:num_rows]
            np.multiply(state.tables[group][seats, blocks] - blocks, block_tokens, out=slots)
            slots += starts  # block id * size + start - start // size * size
            self._tables[group].fill(state.tables[group], seats, -(-max_kv_len // block_tokens))
        shape = StepShape(num_rows, num_rows, num_rows)
        views = partial(self._views, shape, 1, max_kv_len)
        return StepInputs(shape, views, seats, starts, ones, zeros, ramp, ramp[:num_rows], zeros, decodes=True)

    def _build_any(self, plan: StepPlan) -> StepInputs:
        state, seats, num_rows = self._seats, self._seat_array, len(plan.row_seats)
        num_tokens = np.array(plan.row_num_tokens, dtype=np.int64)
        num_drafts = self._place_drafts(plan)
        starts = state.num_computed[seats]
        _refuse_unknown(plan, starts + num_tokens, state.num_known[seats])
        lengths = num_tokens + num_drafts
        query_start = self._query_start.array[: num_rows + 1]
        np.cumsum(lengths, out=query_start[1:])
        total = int(query_start[-1])
        self._make_room(total)

        token_ids, positions = self._token_ids.array[:total], self._positions.array[:total]
        row_of = np.repeat(np.arange(num_rows), lengths)
        np.add(np.arange(total), (starts - query_start[:-1])[row_of], out=positions)
        seat_of = seats[row_of]
        token_ids[:] = state.tokens[seat_of, positions]
        kv_lens = np.add(starts, lengths, out=self._kv_lens.array[:num_rows])
        max_kv_len = int(kv_lens.max())
        for group, spec in enumerate(state.groups):
            block_tokens = spec.tokens_per_block
            np.add(
                state.tables[group][seat_of, positions // block_tokens] * block_tokens,
                positions % block_tokens,
                out=self._slots[group].array[:total],
            )
            self._tables[group].fill(state.tables[group], seats, -(-max_kv_len // block_tokens))

        sampling = np.flatnonzero(plan.row_samples)
        counts = num_drafts[sampling] + 1
        asked_rows = np.repeat(sampling, counts)
        asked_places = np.arange(len(asked_rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        asked = self._asked.array[: len(asked_rows)]
        np.add(query_start[asked_rows] + num_tokens[asked_rows] - 1, asked_places, out=asked)
        shape = StepShape(total, num_rows, len(asked))
        views = partial(self._views, shape, int(lengths.max()), max_kv_len)
        return StepInputs(shape, views, seats, starts, num_tokens, num_drafts, query_start, asked_rows, asked_places)

    def _make_room(self, total: int) -> None:
        """For a step of more tokens than were announced."""
        moved = [buffer.grow(total) for buffer in (self._token_ids, self._positions, self._asked, *self._slots)]
        self.generation += any(moved)

    def _place_drafts(self, plan: StepPlan) -> Ints:
        num_drafts: Ints = np.zeros(len(plan.row_seats), dtype=np.int64)
        for row, drafts in enumerate(plan.row_drafts):
            if drafts:
                num_drafts[row] = len(drafts)
                self._seats.place_drafts(plan.row_seats[row], drafts)
        return num_drafts


def _refuse_unknown(plan: StepPlan, ends: Ints, known: Ints) -> None:
    """A row computes known tokens only, and one that samples computes all of them."""
    wrong = (ends > known) | (np.array(plan.row_samples, dtype=bool) & (ends != known))
    if wrong.any():
        row = int(wrong.argmax())
        raise IntegrityError(
            f"step {plan.step_id}, row {row}: the plan computes up to token {ends[row]} of seat {plan.row_seats[row]}, "
            f"which knows {known[row]} tokens."
        )
