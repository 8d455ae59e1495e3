"""From a plan to the tensors of one step. Knows no model; does no work per token in Python."""

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
    the last ``num_drafts[r]`` of them speculative.
    """

    token_ids: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    groups: tuple[GroupStep, ...]
    seats: Ints
    starts: Ints
    num_tokens: Ints
    num_drafts: Ints
    query_start: Ints


class StepBuffer:
    """int64 memory of a fixed place, seen by torch and by numpy alike. Grows when a step needs more than ever."""

    def __init__(self, size: int) -> None:
        self._tensor = torch.zeros(size, dtype=torch.int64)
        self._array: Ints = self._tensor.numpy()

    def view(self, *shape: int) -> tuple[torch.Tensor, Ints]:
        size = int(np.prod(shape))
        if size > len(self._array):
            self._tensor = torch.zeros(max(size, 2 * len(self._array)), dtype=torch.int64)
            self._array = self._tensor.numpy()
        return self._tensor[:size].view(shape), self._array[:size].reshape(shape)


class InputBuilder:
    """Owns the persistent tensors that a step reads; ``build`` fills them from the seats' state."""

    def __init__(self, seats: SeatState, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._seats = seats
        self._token_ids = StepBuffer(max_num_batched_tokens)
        self._positions = StepBuffer(max_num_batched_tokens)
        self._query_start = StepBuffer(max_num_seqs + 1)
        self._kv_lens = StepBuffer(max_num_seqs)
        self._slots = [StepBuffer(max_num_batched_tokens) for _ in seats.groups]
        self._tables = [StepBuffer(max_num_seqs) for _ in seats.groups]

    def build(self, plan: StepPlan) -> StepInputs:
        """The rows of a plan that has been applied to the seats; at least one row.

        Raises IntegrityError when a row asks for tokens that are not known.
        """
        state = self._seats
        num_rows = len(plan.row_seats)
        seats = np.array(plan.row_seats, dtype=np.int64)
        num_tokens = np.array(plan.row_num_tokens, dtype=np.int64)
        num_drafts = self._place_drafts(plan)
        starts = state.num_computed[seats]
        _refuse_unknown(plan, starts + num_tokens, state.num_known[seats])
        lengths = num_tokens + num_drafts
        query_start_t, query_start = self._query_start.view(num_rows + 1)
        np.cumsum(lengths, out=query_start[1:])
        total = int(query_start[-1])

        token_ids_t, token_ids = self._token_ids.view(total)
        positions_t, positions = self._positions.view(total)
        row_of = np.repeat(np.arange(num_rows), lengths)
        np.add(np.arange(total), (starts - query_start[:-1])[row_of], out=positions)
        seat_of = seats[row_of]
        token_ids[:] = state.tokens[seat_of, positions]
        kv_lens_t, kv_lens = self._kv_lens.view(num_rows)
        np.add(starts, lengths, out=kv_lens)

        max_query_len, max_kv_len = int(lengths.max()), int(kv_lens.max())
        groups = []
        for group, spec in enumerate(state.groups):
            block_tokens = spec.tokens_per_block
            slots_t, slots = self._slots[group].view(total)
            np.add(
                state.tables[group][seat_of, positions // block_tokens] * block_tokens,
                positions % block_tokens,
                out=slots,
            )
            table_t, table = self._tables[group].view(num_rows, -(-max_kv_len // block_tokens))
            np.take(state.tables[group][:, : table.shape[1]], seats, axis=0, out=table, mode="clip")
            groups.append(
                GroupStep(
                    query_start=query_start_t,
                    kv_lens=kv_lens_t,
                    block_table=table_t,
                    slots=slots_t,
                    positions=positions_t,
                    max_query_len=max_query_len,
                    max_kv_len=max_kv_len,
                    block_tokens=block_tokens,
                )
            )
        return StepInputs(token_ids_t, positions_t, tuple(groups), seats, starts, num_tokens, num_drafts, query_start)

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
