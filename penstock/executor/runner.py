"""One step on one rank: inputs, forward, sampler. Knows no thread, no queue and no scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from penstock.attention.context import ForwardContext, forward_context
from penstock.attention.contract import AttentionBackend, AttentionSpec
from penstock.executor.graphs import GraphKey, StepGraphs
from penstock.executor.inputs import InputBuilder, StepInputs
from penstock.executor.kv_storage import KvStorage
from penstock.executor.sampler.logprobs import RawLogprobs
from penstock.executor.sampler.rows import SampleRow, SeatSampling
from penstock.executor.sampler.sampler import NOT_FINITE, Sampled, Sampler
from penstock.executor.seats import SeatState
from penstock.models.family import CausalModel
from penstock.types.kv import KvGroupSpec
from penstock.types.plan import StepPlan
from penstock.types.result import RowFailure, StepResult, StepTimings, TokenLogprobs

PROMPT_LOGITS_ELEMENTS = 4 << 20  # of float32 at once: whole prompts times vocabularies would not fit

# row -> its token masks, one per sampled position in order
RowMasks = Mapping[int, Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class GroupAttention:
    """The backend of one KV group and the spec it was chosen for."""

    spec: AttentionSpec
    backend: AttentionBackend


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


class Runner:
    """Owns the seats and the KV storage of one rank. ``run`` is called by one thread at a time, with plans in order."""

    def __init__(
        self,
        model: CausalModel,
        groups: Sequence[KvGroupSpec],
        attention: Sequence[GroupAttention],
        storage: KvStorage,
        sampler: Sampler,
        limits: RunnerLimits,
        graphs: StepGraphs | None = None,
    ) -> None:
        self._model = model
        self._groups = tuple(groups)
        self._attention = tuple(attention)
        self._storage = storage
        self._sampler = sampler
        self._seats = SeatState(limits.max_num_seqs, limits.max_model_len, groups)
        self._inputs = InputBuilder(self._seats, limits.max_num_seqs, limits.max_num_batched_tokens)
        self._sampling: dict[int, SeatSampling] = {}
        self._describing: set[int] = set()  # seats whose request wants log-probabilities of its prompt
        self._picky: set[int] = set()  # seats that want more than the argmax
        self.graphs = StepGraphs(None, "not asked for") if graphs is None else graphs
        self._inputs_generation = 0

    @torch.inference_mode()
    def run(self, plan: StepPlan, wait_for_masks: Callable[[], RowMasks]) -> StepResult:
        """Carry out one plan. ``wait_for_masks`` blocks until the masks of ``plan.masked_rows`` are there; it is called
        after the forward, and only when there are such rows."""
        started = time.monotonic()
        self._apply(plan)
        # Without tiers no transfer can succeed; the core recomputes what was not loaded.
        transfers = tuple((job.job_id, False) for job in plan.transfers)
        if plan.is_empty:
            timings = StepTimings(started=started, ended=time.monotonic())
            return StepResult(step_id=plan.step_id, finished_transfers=transfers, timings=timings)

        inputs = self._inputs.build(plan)
        if self._inputs.generation != self._inputs_generation:
            self._inputs_generation = self._inputs.generation
            self.graphs.forget()
        answer = _Answer(len(plan.row_seats))
        greedy = not plan.masked_rows and self._picky.isdisjoint(plan.row_seats)
        forward_started = time.monotonic()
        if greedy and inputs.decodes:
            forward_ended = self._decode_greedily(inputs, answer)
        else:
            forward_ended = self._forward_and_sample(plan, inputs, answer, wait_for_masks, greedy)
        ended = time.monotonic()
        return StepResult(
            step_id=plan.step_id,
            row_tokens=tuple(answer.tokens),
            logprobs=answer.logprobs,
            prompt_logprobs=answer.prompt_logprobs,
            failed_rows=answer.failed,
            finished_transfers=transfers,
            timings=StepTimings(
                started=started,
                ended=ended,
                inputs_s=forward_started - started,
                forward_s=forward_ended - forward_started,
                sample_s=ended - forward_ended - answer.waited_s,
            ),
        )

    def _decode_greedily(self, inputs: StepInputs, answer: _Answer) -> float:
        """Every row one token, every answer the argmax. Answers when the forward ended."""
        num_rows = len(inputs.seats)
        token_ids_t, largest_t = self.graphs.run(
            GraphKey(num_rows, "greedy"),
            lambda: self._model.greedy(self._forward(self._inputs.decode_inputs(num_rows)), None),
            lambda: self._model.greedy(self._forward(inputs), None),
        )
        forward_ended = time.monotonic()
        token_ids = token_ids_t.numpy()
        answer.take_greedy(token_ids.tolist(), np.isfinite(largest_t.numpy()))
        if answer.failed:
            self._seats.advance(inputs.seats, inputs.num_tokens, answer.tokens, [True] * num_rows)
        else:
            self._seats.advance_decode(inputs.seats, token_ids)
        return forward_ended

    def _forward_and_sample(
        self,
        plan: StepPlan,
        inputs: StepInputs,
        answer: _Answer,
        wait_for_masks: Callable[[], RowMasks],
        greedy: bool,
    ) -> float:
        """Any step; ``greedy``: all answers are the argmax. Answers when the forward ended."""
        asked = _Asked.of(plan, inputs)
        sampled: Sampled | None = None
        if inputs.decodes:
            logits = self._decode_logits(inputs)
        else:
            carry = self._forward(inputs)
            if greedy or not asked.rows:
                sampled = _as_sampled(*self._model.greedy(carry, asked.positions)) if asked.rows else Sampled([])
            else:
                logits = self._model.logits(carry, asked.positions)
            if not self._describing.isdisjoint(plan.row_seats):
                self._describe_prompts(plan, inputs, carry, answer)
        forward_ended = time.monotonic()
        masks = wait_for_masks() if plan.masked_rows else {}
        answer.waited_s = time.monotonic() - forward_ended
        if sampled is None:
            sampled = self._sampler.sample(logits, self._sample_rows(inputs, asked, masks))
        answer.take(plan, asked, sampled, masks)
        self._seats.advance(inputs.seats, inputs.num_tokens, answer.tokens, plan.row_samples)
        return forward_ended

    def _decode_logits(self, inputs: StepInputs) -> torch.Tensor:
        num_rows = len(inputs.seats)
        return self.graphs.run(
            GraphKey(num_rows, "logits"),
            lambda: self._model.logits(self._forward(self._inputs.decode_inputs(num_rows)), None),
            lambda: self._model.logits(self._forward(inputs), None),
        )

    def _apply(self, plan: StepPlan) -> None:
        self._seats.apply(plan)
        for seat in plan.dropped:
            self._sampling.pop(seat, None)
        for admission in plan.admitted:
            sampling = self._sampler.admit(admission.request_id, admission.sampling, admission.num_prompt_tokens)
            self._sampling[admission.seat] = sampling
            _keep(self._picky, admission.seat, not sampling.plain_greedy)
            _keep(self._describing, admission.seat, sampling.params.prompt_logprobs is not None)

    def _forward(self, inputs: StepInputs) -> Mapping[str, torch.Tensor]:
        metadata = {
            group.name: attention.backend.plan(attention.spec, step)
            for group, attention, step in zip(self._groups, self._attention, inputs.groups, strict=True)
        }
        with forward_context(ForwardContext(metadata, self._storage.layers)):
            carry, _ = self._model.forward(inputs.token_ids, inputs.positions)
        return carry

    def _sample_rows(self, inputs: StepInputs, asked: _Asked, masks: RowMasks) -> list[SampleRow]:
        seats, state = inputs.seats.tolist(), self._seats
        known = state.num_known[inputs.seats].tolist()
        rows = []
        for row, place in zip(asked.rows, asked.places, strict=True):
            of_row = masks.get(row, ())
            rows.append(
                SampleRow(
                    self._sampling[seats[row]],
                    state.tokens[seats[row], : known[row] + place],
                    known[row],
                    of_row[place] if place < len(of_row) else None,
                )
            )
        return rows

    def _describe_prompts(
        self, plan: StepPlan, inputs: StepInputs, carry: Mapping[str, torch.Tensor], answer: _Answer
    ) -> None:
        """Log-probabilities of the prompt tokens that the rows of this step predict, for those who asked."""
        for row, seat in enumerate(plan.row_seats):
            num_top = self._sampling[seat].params.prompt_logprobs
            begin = int(inputs.starts[row])
            end = min(begin + plan.row_num_tokens[row], int(self._seats.num_prompt[seat]) - 1)
            if num_top is None or begin >= end:
                continue
            first = int(inputs.query_start[row])
            chosen = self._seats.tokens[seat, begin + 1 : end + 1].tolist()
            entries = self._describe(carry, first, chosen, num_top)
            if entries is None:
                answer.failed[row] = NOT_FINITE
            else:
                answer.prompt_logprobs[row] = tuple(entries)

    def _describe(
        self, carry: Mapping[str, torch.Tensor], first: int, chosen: Sequence[int], num_top: int
    ) -> list[TokenLogprobs] | None:
        """The log-probabilities of ``chosen[i]`` by the logits at batch position first + i, in slices of bounded
        memory; None when they are not finite."""
        entries: list[TokenLogprobs] = []
        size = max(1, PROMPT_LOGITS_ELEMENTS // self._sampler.vocab_size)
        for begin in range(0, len(chosen), size):
            part = chosen[begin : begin + size]
            logits = self._model.logits(carry, torch.arange(first + begin, first + begin + len(part)))
            if not bool(torch.isfinite(logits).all()):
                return None
            entries += RawLogprobs(logits).describe(part, [num_top] * len(part))
        return entries


@dataclass(frozen=True, slots=True)
class _Asked:
    """The logits that a step needs, in order of rows: entry i is for row ``rows[i]`` after ``places[i]`` drafts."""

    rows: list[int]
    places: list[int]
    positions: torch.Tensor  # batch positions

    @staticmethod
    def of(plan: StepPlan, inputs: StepInputs) -> _Asked:
        sampling = np.flatnonzero(plan.row_samples)
        counts = inputs.num_drafts[sampling] + 1
        rows = np.repeat(sampling, counts)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        positions = inputs.query_start[rows] + inputs.num_tokens[rows] - 1 + places
        return _Asked(rows.tolist(), places.tolist(), torch.from_numpy(positions))


class _Answer:
    """Collects the tokens of each row: verification of drafts, failures, log-probabilities."""

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

    def take(self, plan: StepPlan, asked: _Asked, sampled: Sampled, masks: RowMasks) -> None:
        """Keep a row's samples up to the first that differs from its draft.

        That is exact: the sample at a position is a pure function of the row's logits and history there, and both are
        what they would have been without drafts as long as all earlier samples equal their drafts. A masked row is
        followed only as far as masks were delivered for it.
        """
        begin = 0
        while begin < len(asked.rows):
            row = asked.rows[begin]
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


def _as_sampled(token_ids: torch.Tensor, largest: torch.Tensor) -> Sampled:
    spoiled = np.flatnonzero(~np.isfinite(largest.numpy())).tolist()
    return Sampled(token_ids.tolist(), failed=dict.fromkeys(spoiled, NOT_FINITE))


def _keep(seats: set[int], seat: int, member: bool) -> None:
    if member:
        seats.add(seat)
    else:
        seats.discard(seat)
