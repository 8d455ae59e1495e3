"""What the requests in the seats ask of the sampler, and the rows that it is handed. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from penstock.executor.answer import Answer, RowMasks
from penstock.executor.inputs import StepInputs
from penstock.executor.sampler.rows import SampleRow, SeatSampling
from penstock.executor.sampler.sampler import NOT_FINITE, Sampled, Sampler
from penstock.executor.seats import SeatState
from penstock.types.plan import StepPlan
from penstock.types.result import TokenLogprobs

# (first batch position, chosen tokens, number of alternatives) -> entries, None when logits are not finite
Describe = Callable[[int, Sequence[int], int], list[TokenLogprobs] | None]


class SeatSamplings:
    """The sampling of every seat, made at admission."""

    def __init__(self, sampler: Sampler, seats: SeatState) -> None:
        self.sampler = sampler
        self._seats = seats
        self._of: dict[int, SeatSampling] = {}
        self._describing: set[int] = set()  # seats whose request wants log-probabilities of its prompt
        self._picky: set[int] = set()  # seats that want more than the argmax

    def __getitem__(self, seat: int) -> SeatSampling:
        return self._of[seat]

    def apply(self, plan: StepPlan) -> None:
        """Drops, then admissions."""
        for seat in plan.dropped:
            self._of.pop(seat, None)
        for admission in plan.admitted:
            sampling = self.sampler.admit(admission.request_id, admission.sampling, admission.num_prompt_tokens)
            self._of[admission.seat] = sampling
            _keep(self._picky, admission.seat, not sampling.plain_greedy)
            _keep(self._describing, admission.seat, sampling.params.prompt_logprobs is not None)

    def all_greedy(self, plan: StepPlan) -> bool:
        """The argmax of the raw logits answers every row."""
        return not plan.masked_rows and self._picky.isdisjoint(plan.row_seats)

    def describes(self, plan: StepPlan) -> bool:
        """A row predicts tokens of its prompt whose log-probabilities its request wants."""
        state = self._seats
        return any(
            state.num_computed[seat] < state.num_prompt[seat] - 1
            for seat in self._describing.intersection(plan.row_seats)
        )

    def sample(
        self, logits: torch.Tensor, inputs: StepInputs, masks: RowMasks, places: Sequence[int] | None = None
    ) -> Sampled:
        """logits float32 [n, vocab] on the CPU, changed in place, of these places among what was asked; of all, unless
        they are named."""
        rows = self._rows(inputs, masks)
        return self.sampler.sample(logits, rows if places is None else [rows[place] for place in places])

    def _rows(self, inputs: StepInputs, masks: RowMasks) -> list[SampleRow]:
        seats, state = inputs.seats.tolist(), self._seats
        known = state.num_known[inputs.seats].tolist()
        rows = []
        for row, place in zip(inputs.asked_rows.tolist(), inputs.asked_places.tolist(), strict=True):
            of_row = masks.get(row, ())
            rows.append(
                SampleRow(
                    self._of[seats[row]],
                    state.tokens[seats[row], : known[row] + place],
                    known[row],
                    of_row[place] if place < len(of_row) else None,
                )
            )
        return rows

    def describe_prompts(self, plan: StepPlan, inputs: StepInputs, describe: Describe, answer: Answer) -> None:
        """Log-probabilities of the prompt tokens that the rows of this step predict, for those who asked."""
        for row, seat in enumerate(plan.row_seats):
            num_top = self._of[seat].params.prompt_logprobs
            begin = int(inputs.starts[row])
            end = min(begin + plan.row_num_tokens[row], int(self._seats.num_prompt[seat]) - 1)
            if num_top is None or begin >= end:
                continue
            first = int(inputs.query_start[row])
            chosen = self._seats.tokens[seat, begin + 1 : end + 1].tolist()
            entries = describe(first, chosen, num_top)
            if entries is None:
                answer.failed[row] = NOT_FINITE
            else:
                answer.prompt_logprobs[row] = tuple(entries)


def _keep(seats: set[int], seat: int, member: bool) -> None:
    if member:
        seats.add(seat)
    else:
        seats.discard(seat)
