"""The tokens of each row of one step: verification of drafts, failures, log-probabilities. Knows no tensor's device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from penstock.executor.inputs import StepInputs
from penstock.executor.sampler.sampler import NOT_FINITE, Sampled
from penstock.types.plan import StepPlan
from penstock.types.result import RowFailure, TokenLogprobs

# row -> its token masks, one per sampled position in order
RowMasks = Mapping[int, Sequence[bytes]]


class Answer:
    """Collects what a step answers, row by row."""

    def __init__(self, num_rows: int) -> None:
        self.tokens: list[tuple[int, ...]] = [()] * num_rows
        self.logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        self.prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        self.failed: dict[int, RowFailure] = {}
        self.waited_s = 0.0  # for masks

    def take_greedy(self, token_ids: Sequence[int], finite: npt.NDArray[np.bool_]) -> None:
        """One token per row, unless its logits are not finite."""
        self.tokens = [(token,) for token in token_ids]
        if not finite.all():
            for row in np.flatnonzero(~finite).tolist():
                self.failed[row] = NOT_FINITE
                self.tokens[row] = ()

    def take(self, plan: StepPlan, inputs: StepInputs, sampled: Sampled, masks: RowMasks) -> None:
        """Keep a row's samples up to the first that differs from its draft.

        That is exact: the sample at a position is a pure function of the row's logits and history there, and both are
        what they would have been without drafts as long as all earlier samples equal their drafts. A masked row is
        followed only as far as masks were delivered for it.
        """
        begin, rows = 0, inputs.asked_rows.tolist()
        while begin < len(rows):
            row = rows[begin]
            drafts = plan.row_drafts[row] if plan.row_drafts else ()
            end = begin + len(drafts) + 1
            usable = end if row not in masks else min(end, begin + len(masks[row]))
            last = begin
            while last + 1 < usable and last not in sampled.failed and sampled.tokens[last] == drafts[last - begin]:
                last += 1
            if last in sampled.failed:
                self.failed[row] = sampled.failed[last]
            if row not in self.failed:
                self.tokens[row] = tuple(sampled.tokens[begin : last + 1])
                if last in sampled.logprobs:
                    self.logprobs[row] = tuple(sampled.logprobs[i] for i in range(begin, last + 1))
            begin = end
