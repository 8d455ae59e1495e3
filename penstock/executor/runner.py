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
from penstock.executor.graphs import GraphKey, StepGraphs, Variant
from penstock.executor.inputs import ForwardInputs, InputBuilder, StepInputs
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

# What a Variant of a step computes: nothing; token ids and largest logits; logits.
Computed = tuple[torch.Tensor, ...]

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
        forward_started = time.monotonic()
        if not len(inputs.asked_rows):
            variant = Variant.NOTHING
        elif not plan.masked_rows and self._picky.isdisjoint(plan.row_seats):
            variant = Variant.GREEDY
        else:
            variant = Variant.LOGITS
        computed = self._compute(plan, inputs, variant, answer)
        forward_ended = time.monotonic()
        if variant is Variant.GREEDY and inputs.decodes:
            self._answer_decode(inputs, computed, answer)
        else:
            self._answer_any(plan, inputs, variant, computed, answer, wait_for_masks)
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

    def _compute(self, plan: StepPlan, inputs: StepInputs, variant: Variant, answer: _Answer) -> Computed:
        if inputs.decodes or self._describing.isdisjoint(plan.row_seats):
            shape = inputs.shape
            return self.graphs.run(
                GraphKey(shape, variant),
                lambda: self._logits(self._forward(places := self._inputs.places(shape)), places, variant),
                lambda: self._logits(self._forward(places := inputs.forward), places, variant),
            )
        carry = self._forward(places := inputs.forward)
        self._describe_prompts(plan, inputs, carry, answer)
        return self._logits(carry, places, variant)

    def _forward(self, inputs: ForwardInputs) -> Mapping[str, torch.Tensor]:
        metadata = {
            group.name: attention.backend.plan(attention.spec, step)
            for group, attention, step in zip(self._groups, self._attention, inputs.groups, strict=True)
        }
        with forward_context(ForwardContext(metadata, self._storage.layers)):
            carry, _ = self._model.forward(inputs.token_ids, inputs.positions)
        return carry

    def _logits(self, carry: Mapping[str, torch.Tensor], inputs: ForwardInputs, variant: Variant) -> Computed:
        if variant is Variant.NOTHING:
            return ()
        if variant is Variant.GREEDY:
            return self._model.greedy(carry, inputs.asked)
        return (self._model.logits(carry, inputs.asked),)

    def _answer_decode(self, inputs: StepInputs, computed: Computed, answer: _Answer) -> None:
        """Every row one token, every answer the argmax."""
        token_ids, largest = (tensor.numpy() for tensor in computed)
        answer.take_greedy(token_ids.tolist(), np.isfinite(largest))
        if answer.failed:
            self._seats.advance(inputs.seats, inputs.num_tokens, answer.tokens, [True] * len(inputs.seats))
        else:
            self._seats.advance_decode(inputs.seats, token_ids)

    def _answer_any(
        self,
        plan: StepPlan,
        inputs: StepInputs,
        variant: Variant,
        computed: Computed,
        answer: _Answer,
        wait_for_masks: Callable[[], RowMasks],
    ) -> None:
        masks: RowMasks = {}
        if plan.masked_rows:
            began = time.monotonic()
            masks = wait_for_masks()
            answer.waited_s = time.monotonic() - began
        if variant is Variant.LOGITS:
            answer.take(plan, inputs, self._sampler.sample(computed[0], self._sample_rows(inputs, masks)), masks)
        elif variant is Variant.GREEDY:
            answer.take(plan, inputs, _as_sampled(*computed), masks)
        self._seats.advance(inputs.seats, inputs.num_tokens, answer.tokens, plan.row_samples)

    def _apply(self, plan: StepPlan) -> None:
        self._seats.apply(plan)
        for seat in plan.dropped:
            self._sampling.pop(seat, None)
        for admission in plan.admitted:
            sampling = self._sampler.admit(admission.request_id, admission.sampling, admission.num_prompt_tokens)
            self._sampling[admission.seat] = sampling
            _keep(self._picky, admission.seat, not sampling.plain_greedy)
            _keep(self._describing, admission.seat, sampling.params.prompt_logprobs is not None)

    def _sample_rows(self, inputs: StepInputs, masks: RowMasks) -> list[SampleRow]:
        seats, state = inputs.seats.tolist(), self._seats
        known = state.num_known[inputs.seats].tolist()
        rows = []
        for row, place in zip(inputs.asked_rows.tolist(), inputs.asked_places.tolist(), strict=True):
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


def _as_sampled(token_ids: torch.Tensor, largest: torch.Tensor) -> Sampled:
    spoiled = np.flatnonzero(~np.isfinite(largest.numpy())).tolist()
    return Sampled(token_ids.tolist(), failed=dict.fromkeys(spoiled, NOT_FINITE))


def _keep(seats: set[int], seat: int, member: bool) -> None:
    if member:
        seats.add(seat)
    else:
        seats.discard(seat)
