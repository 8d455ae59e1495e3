"""From a plan to the tensors of one step. Knows no model; does no work per token in Python.

Everything lies at fixed addresses in fixed strides, so that a step which was recorded finds its inputs where they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from penstock.attention.contract import GroupStep
from penstock.errors import IntegrityError
from penstock.executor.seats import Ints, SeatState
from penstock.types.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Tensors are views of persistent memory: valid until the next step is built.

    Entry r of the arrays belongs to row r; the tokens of row r are [query_start[r], query_start[r + 1]) of the batch,
    the last ``num_drafts[r]`` of them speculative. ``decodes``: every row is one token that is sampled behind.
    """

    token_ids: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    groups: tuple[GroupStep, ...]
    seats: Ints
    starts: Ints
    num_tokens: Ints
    num_drafts: Ints
    query_start: Ints
    decodes: bool = False


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
        if width > self.filled:
            self.array[: len(seats), :width] = tables[seats, :width]
            self.filled = width


@dataclass(frozen=True, slots=True)
class _DecodeViews:
    """What every decode step of so many rows has in common. The groups of ``fixed`` see whole tables, so that they fit
    any step; those of a step see the columns that it needs."""

    fixed: StepInputs
    ones: Ints
    zeros: Ints


class InputBuilder:
    """Owns the persistent tensors that a step reads; ``build`` fills them from the seats' state.

    ``generation`` changes when a tensor has moved.
    """

    def __init__(self, seats: SeatState, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._seats = seats
        self._token_ids = StepBuffer(max_num_batched_tokens)
        self._positions = StepBuffer(max_num_batched_tokens)
        self._query_start = StepBuffer(max_num_seqs + 1)
        self._kv_lens = StepBuffer(max_num_seqs)
        self._slots = [StepBuffer(max_num_batched_tokens) for _ in seats.groups]
        self._tables = [TableBuffer(max_num_seqs, table.shape[1]) for table in seats.tables]
        self._ramp: Ints = np.arange(max_num_seqs + 1, dtype=np.int64)
        self._views: dict[int, _DecodeViews] = {}
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

    def decode_inputs(self, num_rows: int) -> StepInputs:
        """The places of a decode step's inputs, for whatever step: ``groups`` have whole tables and the longest
        lengths. The arrays that differ from step to step are empty."""
        return self._decode_views(num_rows).fixed

    def _build_decode(self, plan: StepPlan) -> StepInputs:
        state, seats, num_rows = self._seats, self._seat_array, len(plan.row_seats)
        views = self._decode_views(num_rows)
        starts = state.num_computed[seats]
        kv_lens = np.add(starts, 1, out=self._kv_lens.array[:num_rows])
        known = state.num_known[seats]
        if not np.array_equal(kv_lens, known):
            _refuse_unknown(plan, kv_lens, known)
        self._positions.array[:num_rows] = starts
        self._token_ids.array[:num_rows] = state.tokens[seats, starts]
        self._query_start.array[: num_rows + 1] = self._ramp[: num_rows + 1]
        max_kv_len = int(kv_lens.max())
        groups = []
        for group, (fixed, tables) in enumerate(zip(views.fixed.groups, state.tables, strict=True)):
            block_tokens = fixed.block_tokens
            blocks = starts // block_tokens
            slots = self._slots[group].array[:num_rows]
            np.multiply(tables[seats, blocks] - blocks, block_tokens, out=slots)
            slots += starts  # table entry * size + start - start // size * size
            width = -(-max_kv_len // block_tokens)
            self._tables[group].fill(tables, seats, width)
            groups.append(
                GroupStep(
                    query_start=fixed.query_start,
                    kv_lens=fixed.kv_lens,
                    block_table=fixed.block_table[:, :width],
                    slots=fixed.slots,
                    positions=fixed.positions,
                    max_query_len=1,
                    max_kv_len=max_kv_len,
                    block_tokens=block_tokens,
                )
            )
        fixed_ids, fixed_positions = views.fixed.token_ids, views.fixed.positions
        query_start = self._ramp[: num_rows + 1]
        return StepInputs(
            fixed_ids, fixed_positions, tuple(groups), seats, starts, views.ones, views.zeros, query_start, True
        )

    def _decode_views(self, num_rows: int) -> _DecodeViews:
        views = self._views.get(num_rows)
        if views is None:
            views = self._views[num_rows] = self._make_decode_views(num_rows)
        return views

    def _make_decode_views(self, num_rows: int) -> _DecodeViews:
        positions = self._positions.tensor[:num_rows]
        none = np.zeros(0, dtype=np.int64)
        groups = tuple(
            GroupStep(
                query_start=self._query_start.tensor[: num_rows + 1],
                kv_lens=self._kv_lens.tensor[:num_rows],
                block_table=table.tensor[:num_rows],
                slots=slots.tensor[:num_rows],
                positions=positions,
                max_query_len=1,
                max_kv_len=min(self._seats.max_tokens, table.tensor.shape[1] * spec.tokens_per_block),
                block_tokens=spec.tokens_per_block,
            )
            for spec, table, slots in zip(self._seats.groups, self._tables, self._slots, strict=True)
        )
        return _DecodeViews(
            StepInputs(
                self._token_ids.tensor[:num_rows], positions, groups, none, none, none, none, none, decodes=True
            ),
            np.ones(num_rows, dtype=np.int64),
            np.zeros(num_rows, dtype=np.int64),
        )

    def _build_any(self, plan: StepPlan) -> StepInputs:
        state, seats, num_rows = self._seats, self._seat_array, len(plan.row_seats)
        num_tokens = np.array(plan.row_num_tokens, dtype=np.int64)
        num_drafts = self._place_drafts(plan)
        starts = state.num_computed[seats]
        _refuse_unknown(plan, starts + num_tokens, state.num_known[seats])
        lengths = num_tokens + num_drafts
        query_start = self._query_start.array[: num_rows + 1]
        np.cumsum(lengths, out=query_start[1:])
        query_start[0] = 0
        total = int(query_start[-1])
        self._make_room(total)

        token_ids, positions = self._token_ids.array[:total], self._positions.array[:total]
        row_of = np.repeat(np.arange(num_rows), lengths)
        np.add(np.arange(total), (starts - query_start[:-1])[row_of], out=positions)
        seat_of = seats[row_of]
        token_ids[:] = state.tokens[seat_of, positions]
        kv_lens = np.add(starts, lengths, out=self._kv_lens.array[:num_rows])

        max_query_len, max_kv_len = int(lengths.max()), int(kv_lens.max())
        groups = []
        for group, spec in enumerate(state.groups):
            block_tokens = spec.tokens_per_block
            np.add(
                state.tables[group][seat_of, positions // block_tokens] * block_tokens,
                positions % block_tokens,
                out=self._slots[group].array[:total],
            )
            width = -(-max_kv_len // block_tokens)
            self._tables[group].fill(state.tables[group], seats, width)
            groups.append(
                GroupStep(
                    query_start=self._query_start.tensor[: num_rows + 1],
                    kv_lens=self._kv_lens.tensor[:num_rows],
                    block_table=self._tables[group].tensor[:num_rows, :width],
                    slots=self._slots[group].tensor[:total],
                    positions=self._positions.tensor[:total],
                    max_query_len=max_query_len,
                    max_kv_len=max_kv_len,
                    block_tokens=block_tokens,
                )
            )
        ids_t, positions_t = self._token_ids.tensor[:total], self._positions.tensor[:total]
        return StepInputs(ids_t, positions_t, tuple(groups), seats, starts, num_tokens, num_drafts, query_start)

    def _make_room(self, total: int) -> None:
        """For a step of more tokens than were announced; all views are made again."""
        moved = [buffer.grow(total) for buffer in (self._token_ids, self._positions, *self._slots)]
        if any(moved):
            self._views.clear()
            self.generation += 1

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
