"""One step on one rank: inputs, forward, sampler. Knows no thread, no queue and no scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from penstock.executor.answer import Answer, RowMasks
from penstock.executor.forward import Computed, Forward
from penstock.executor.graphs import GraphKey, StepGraphs, Variant
from penstock.executor.inputs import InputBuilder, StepInputs
from penstock.executor.sampler.sampler import NOT_FINITE, Sampled, Sampler
from penstock.executor.seat_sampling import SeatSamplings
from penstock.executor.seats import SeatState
from penstock.types.kv import KvGroupSpec
from penstock.types.plan import StepPlan
from penstock.types.result import StepResult, StepTimings


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


class Runner:
    """Owns the seats of one rank. ``run`` is called by one thread at a time, with plans in order."""

    def __init__(
        self,
        forward: Forward,
        groups: tuple[KvGroupSpec, ...],
        sampler: Sampler,
        limits: RunnerLimits,
        graphs: StepGraphs | None = None,
    ) -> None:
        self._forward = forward
        self._seats = SeatState(limits.max_num_seqs, limits.max_model_len, groups)
        self._inputs = InputBuilder(self._seats, limits.max_num_seqs, limits.max_num_batched_tokens)
        self._sampling = SeatSamplings(sampler, self._seats)
        self.graphs = StepGraphs(None, "not asked for") if graphs is None else graphs
        self._inputs_generation = 0

    @torch.inference_mode()
    def run(self, plan: StepPlan, wait_for_masks: Callable[[], RowMasks]) -> StepResult:
        """Carry out one plan. ``wait_for_masks`` blocks until the masks of ``plan.masked_rows`` are there; it is called
        after the forward, and only when there are such rows."""
        started = time.monotonic()
        self._seats.apply(plan)
        self._sampling.apply(plan)
        if plan.is_empty:
            return empty_result(plan, started)

        inputs = self._inputs.build(plan)
        if self._inputs.generation != self._inputs_generation:
            self._inputs_generation = self._inputs.generation
            self.graphs.forget()
        answer = Answer(len(plan.row_seats))
        forward_started = time.monotonic()
        if not len(inputs.asked_rows):
            variant = Variant.NOTHING
        elif self._sampling.all_greedy(plan):
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
        timings = StepTimings(
            started=started,
            ended=ended,
            inputs_s=forward_started - started,
            forward_s=forward_ended - forward_started,
            sample_s=ended - forward_ended - answer.waited_s,
        )
        return step_result(plan, answer, timings)

    def _compute(self, plan: StepPlan, inputs: StepInputs, variant: Variant, answer: Answer) -> Computed:
        if inputs.decodes or not self._sampling.describes(plan):
            shape = inputs.shape
            return self.graphs.run(
                GraphKey(shape, variant),
                lambda: self._forward.compute(self._inputs.places(shape), variant),
                lambda: self._forward.compute(inputs.forward, variant),
            )
        places = inputs.forward
        carry = self._forward.carry(places)
        describe = partial(self._forward.describe, carry, self._sampling.sampler.vocab_size)
        self._sampling.describe_prompts(plan, inputs, describe, answer)
        return self._forward.answers(carry, places.asked, variant)

    def _answer_decode(self, inputs: StepInputs, computed: Computed, answer: Answer) -> None:
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
        answer: Answer,
        wait_for_masks: Callable[[], RowMasks],
    ) -> None:
        masks: RowMasks = {}
        if plan.masked_rows:
            began = time.monotonic()
            masks = wait_for_masks()
            answer.waited_s = time.monotonic() - began
        if variant is Variant.LOGITS:
            answer.take(plan, inputs, self._sampling.sample(computed[0], inputs, masks), masks)
        elif variant is Variant.GREEDY:
            answer.take(plan, inputs, _as_sampled(*computed), masks)
        self._seats.advance(inputs.seats, inputs.num_tokens, answer.tokens, plan.row_samples)


def step_result(plan: StepPlan, answer: Answer, timings: StepTimings) -> StepResult:
    return StepResult(
        step_id=plan.step_id,
        row_tokens=tuple(answer.tokens),
        logprobs=answer.logprobs,
        prompt_logprobs=answer.prompt_logprobs,
        failed_rows=answer.failed,
        finished_transfers=_refused_transfers(plan),
        timings=timings,
    )


def empty_result(plan: StepPlan, started: float) -> StepResult:
    """Of a plan without rows."""
    timings = StepTimings(started=started, ended=time.monotonic())
    return StepResult(step_id=plan.step_id, finished_transfers=_refused_transfers(plan), timings=timings)


def _refused_transfers(plan: StepPlan) -> tuple[tuple[int, bool], ...]:
    """Without tiers no transfer can succeed; the core recomputes what was not loaded."""
    return tuple((job.job_id, False) for job in plan.transfers)


def _as_sampled(token_ids: torch.Tensor, largest: torch.Tensor) -> Sampled:
    spoiled = np.flatnonzero(~np.isfinite(largest.numpy())).tolist()
    return Sampled(token_ids.tolist(), failed=dict.fromkeys(spoiled, NOT_FINITE))
