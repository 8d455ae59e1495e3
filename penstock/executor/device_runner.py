"""Steps on a device that computes while the host goes on. Knows no thread, no queue and no scheduler.

The host never waits for the device within a step: what a row samples stays on the device, where the next step finds it,
and is copied to the host behind the step. Seats advance when a step is launched, by what it will answer; the token ids
follow when it is finished. A step of rows with token masks is launched up to its edited logits; once the masks are
there, they are launched behind it with the draw. Rows that the device cannot sample (drafts, what its ops cannot do)
and log-probabilities of prompts make their step a careful one: the host samples those rows, the device the others, and
nothing is launched before that is done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch

from penstock.executor.answer import Answer, RowMasks
from penstock.executor.device_answers import AnswerRing, Answers, Bools
from penstock.executor.device_edits import DeviceEdits, EditOps, needs_edit, refusal
from penstock.executor.device_inputs import Cuts, DeviceAsked, DeviceInputs, DeviceStep, Layout
from penstock.executor.device_logprobs import DescribedPlace, describe
from penstock.executor.device_masks import DeviceMasks, MaskOp
from penstock.executor.forward import Computed, Forward
from penstock.executor.graphs import GraphKey, StepGraphs, Variant
from penstock.executor.inputs import ForwardInputs, InputBuilder, StepInputs, StepShape
from penstock.executor.runner import RunnerLimits, empty_result, step_result
from penstock.executor.sampler.counter_random import uniform
from penstock.executor.sampler.fused import SampleOp, fused_cuts
from penstock.executor.sampler.rows import FusedCuts, SeatSampling
from penstock.executor.sampler.sampler import NOT_FINITE, Sampled, Sampler
from penstock.executor.seat_sampling import SeatSamplings
from penstock.executor.seats import Ints, SeatState
from penstock.types.kv import KvGroupSpec
from penstock.types.plan import Admission, StepPlan
from penstock.types.result import StepResult, StepTimings

# Likeliest token, the lowest id among equals: what the draw of a greedy row is told.
ARGMAX = FusedCuts(1.0, 0.0, 1, 1.0)


class PendingStep(Protocol):
    """A step that was launched."""

    careful: bool

    def done(self) -> bool:
        """True when ``finish`` will not wait for the device."""

    def finish(self) -> StepResult:
        """Wait for the device and answer. Called once by the owner, and earlier by the runner if need be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceParts:
    """What a DeviceRunner is made of. ``resolve`` and ``keep`` are the ops of those names, ``sample_op`` draws on the
    device, ``edit_ops`` and ``mask_op`` change logits before; ``scratch_slots`` has one entry per group."""

    forward: Forward
    groups: tuple[KvGroupSpec, ...]
    sampler: Sampler
    sample_op: SampleOp | None
    edit_ops: EditOps
    mask_op: MaskOp
    resolve: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    keep: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
    scratch_slots: tuple[int, ...]
    device: torch.device
    depth: int


class DeviceRunner:
    """Owns the seats of one rank. ``launch`` is called by one thread at a time, with plans in order."""

    def __init__(self, parts: DeviceParts, limits: RunnerLimits, graphs: StepGraphs) -> None:
        self._forward = parts.forward
        self._depth = parts.depth
        self._sample_op, self._resolve, self._keep = parts.sample_op, parts.resolve, parts.keep
        self._seats = SeatState(limits.max_num_seqs, limits.max_model_len, parts.groups, journal=True)
        self._builder = InputBuilder(self._seats, limits.max_num_seqs, limits.max_num_batched_tokens, tables=False)
        self._inputs = DeviceInputs(
            self._seats,
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            parts.scratch_slots,
            parts.depth,
            parts.device,
        )
        self._sampling = SeatSamplings(parts.sampler, self._seats)
        self._edits = DeviceEdits(limits.max_num_seqs, parts.sampler.vocab_size, parts.edit_ops, parts.device)
        self._masks = DeviceMasks(
            limits.max_num_seqs, parts.sampler.vocab_size, parts.mask_op, parts.depth, parts.device
        )
        self._cuts: dict[int, FusedCuts | None] = {}  # of a seat; None: the host has to sample
        self._describing: set[int] = set()  # seats whose tokens are described on the device
        self._last_tokens = torch.zeros(limits.max_num_seqs + 1, dtype=torch.int64, device=parts.device)
        self._num_final: Ints = np.zeros(limits.max_num_seqs, dtype=np.int64)
        self._residence: Ints = np.zeros(limits.max_num_seqs, dtype=np.int64)  # counts admissions to a seat
        self._answers = AnswerRing(parts.depth + 1, limits.max_num_seqs, parts.sampler.vocab_size, parts.device)
        self._open: deque[_Launched | _Careful] = deque()
        self._row_counts = padded_row_counts(limits.max_num_seqs)
        self._unmet = list(self._row_counts)  # whose steps that draw are to be recorded by ``record_one``
        self.graphs = graphs

    def run(self, plan: StepPlan, wait_for_masks: Callable[[], RowMasks]) -> StepResult:
        """Launch and finish."""
        return self.launch(plan, wait_for_masks).finish()

    @torch.inference_mode()
    def launch(self, plan: StepPlan, wait_for_masks: Callable[[], RowMasks]) -> PendingStep:
        """Start one plan and return while the device computes. ``wait_for_masks`` as ``Runner.run`` has it; it is
        called by ``finish``, or by the next ``launch``: what is launched behind finds what this step draws."""
        started = time.monotonic()
        if any(step.careful for step in self._open):
            self._settle()  # its rows' lengths are known only then
        for step in self._open:
            if isinstance(step, _Launched):
                self._draw_masked(step)
        while len(self._open) >= self._depth:  # the memory that results are copied to is as deep
            self._open[0].finish()
        self._apply(plan)
        if plan.is_empty:
            return _Finished(empty_result(plan, started))
        careful = self._is_careful(plan)
        if careful:
            self._settle()  # the host samples with all tokens known
        inputs = self._builder.build(plan)
        self._inputs.send_tables()
        pending: _Launched | _Careful
        if careful:
            pending = self._launch_careful(plan, inputs, wait_for_masks, started)
        else:
            pending = self._launch(plan, inputs, wait_for_masks, started)
        self._open.append(pending)
        return pending

    def record(self, num_rows: int, variant: Variant) -> None:
        """Record the decode step of ``num_rows`` rows, if it is not, over rows of filling."""
        key = GraphKey(StepShape(num_rows, num_rows, num_rows), variant)
        if self.graphs.wants(key):
            layout = self._inputs.send_scratch(num_rows)
            self.graphs.prepare(key, lambda: self._compute_decode(layout, variant))

    @torch.inference_mode()
    def record_all(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Record greedy decode steps of every row count, the largest first: its memory serves the others.
        ``progress(done, total)`` counts them."""
        counts = self._row_counts if self.graphs.on else []
        for done, num_rows in enumerate(reversed(counts), 1):
            self.record(num_rows, Variant.GREEDY)
            if progress is not None:
                progress(done, len(counts))

    @torch.inference_mode()
    def record_one(self) -> bool:
        """Record one of the decode steps that draw and have not been met; False when there is none. The largest first,
        as above. They are left for when nothing is to be done: as many as the greedy ones, they would make every start
        longer by as much, and what a first request of its row count pays instead is the time of two or three steps."""
        if self._sample_op is None or not self.graphs.on:
            return False
        while self._unmet:
            num_rows = self._unmet.pop()
            if self.graphs.wants(GraphKey(StepShape(num_rows, num_rows, num_rows), Variant.DRAWN)):
                self.record(num_rows, Variant.DRAWN)
                return True
        return False

    def _apply(self, plan: StepPlan) -> None:
        self._seats.apply(plan)
        self._sampling.apply(plan)
        for seat in (*plan.dropped, *(admission.seat for admission in plan.admitted)):
            self._edits.release(seat)
        for admission in plan.admitted:
            seat = admission.seat
            self._residence[seat] += 1
            self._num_final[seat] = len(admission.token_ids)
            self._cuts[seat] = self._admit_cuts(admission)

    def _admit_cuts(self, admission: Admission) -> FusedCuts | None:
        sampling = self._sampling[admission.seat]
        self._describing.discard(admission.seat)
        cuts = self._device_cuts(sampling)
        if cuts is None or (needs_edit(sampling) and not self._edits.admit(admission, sampling)):
            return None
        if sampling.params.logprobs is not None:
            self._describing.add(admission.seat)
        return cuts

    def _device_cuts(self, sampling: SeatSampling) -> FusedCuts | None:
        if sampling.greedy and (sampling.plain or self._sample_op is not None):
            return ARGMAX
        return None if self._sample_op is None else fused_cuts(sampling.params, self._sampling.sampler.vocab_size)

    def _is_careful(self, plan: StepPlan) -> bool:
        if any(plan.row_drafts) or self._sampling.describes(plan) or (plan.masked_rows and self._sample_op is None):
            return True
        rows = zip(plan.row_seats, plan.row_samples, strict=True)
        return any(samples and self._cuts[seat] is None for seat, samples in rows)

    # -- what the device does alone ------------------------------------------------------------------------------

    def _launch(
        self, plan: StepPlan, inputs: StepInputs, wait_for_masks: Callable[[], RowMasks], started: float
    ) -> _Launched:
        asked_seats, masked = inputs.seats[inputs.asked_rows], bool(plan.masked_rows)
        described = not self._describing.isdisjoint(asked_seats.tolist())
        edited = described or masked or self._edits.concern(asked_seats)
        cuts = self._cuts_of(asked_seats, edited=edited)
        variant = Variant.NOTHING if not len(asked_seats) else Variant.GREEDY if cuts is None else Variant.DRAWN
        if edited:
            variant = Variant.LOGITS if masked else Variant.DESCRIBED if described else Variant.EDITED
            self._edits.expect(asked_seats, self._seats)
        num_rows = len(inputs.seats)
        padded = self._padded(num_rows) if inputs.decodes and self.graphs.on else None
        if padded is not None:
            self.record(padded, variant)
        host = inputs.forward
        layout = self._inputs.send(inputs, host, self._num_final, cuts, padded)
        if padded is not None:
            decode = partial(self._compute_decode, layout, variant)
            computed = self.graphs.run(GraphKey(layout.shape, variant), decode, decode)
        else:
            first = host.groups[0]
            computed = self._compute(self._inputs.views(layout, first.max_query_len, first.max_kv_len), variant)
        undrawn, answers = None, None
        if masked:
            edits = self._edit(computed[0], self._inputs.asked(layout), described=described)
            undrawn = _Undrawn(edits, wait_for_masks)
        else:
            answers = self._answers.copy(computed, len(asked_seats))
        known = self._seats.num_known[asked_seats]
        self._seats.advance_expected(inputs.seats, inputs.num_tokens, asked_seats)
        samplings = [self._sampling[seat] for seat in asked_seats.tolist()] if edited else []
        residence, launched = self._residence[asked_seats], time.monotonic()
        return _Launched(self, plan, inputs, answers, undrawn, known, residence, samplings, started, launched)

    def _compute_decode(self, layout: Layout, variant: Variant) -> Computed:
        """With the largest lengths that a decode step may have: recorded, it serves all of its shape."""
        computed = self._compute(self._inputs.views(layout, 1, self._seats.max_tokens), variant)
        return (self._masks.keep(computed[0]),) if variant is Variant.LOGITS else computed

    def _compute(self, step: DeviceStep, variant: Variant) -> Computed:
        forward = step.forward
        inputs = forward.with_tokens(self._resolve(forward.token_ids, self._last_tokens))
        if variant in (Variant.DRAWN, Variant.EDITED, Variant.DESCRIBED):
            computed = self._drawn(inputs, step, variant)
        else:
            computed = self._forward.compute(inputs, variant)
        if variant not in (Variant.NOTHING, Variant.LOGITS):
            self._keep(self._last_tokens, step.asked.seats, computed[0])
        return computed

    def _drawn(self, inputs: ForwardInputs, step: DeviceStep, variant: Variant) -> Computed:
        assert self._sample_op is not None
        (logits,) = self._forward.compute(inputs, Variant.LOGITS)
        if variant is Variant.DRAWN:
            return self._sample_op(logits, *step.asked.cuts)
        return self._draw(self._edit(logits, step.asked, described=variant is Variant.DESCRIBED))

    def _edit(self, logits: torch.Tensor, asked: DeviceAsked, *, described: bool) -> _Edited:
        raw = logits.clone() if described else None
        return _Edited(logits, raw, self._edits.edit(logits, asked.seats), asked)

    def _draw(self, edited: _Edited) -> Computed:
        assert self._sample_op is not None
        token_ids, _ = self._sample_op(edited.logits, *edited.asked.cuts)
        self._edits.count(edited.asked.seats, token_ids)
        answer = (token_ids, edited.finite)
        return answer if edited.raw is None else (*answer, *describe(edited.raw, token_ids))

    @torch.inference_mode()
    def _draw_masked(self, step: _Launched) -> None:
        """Launch the rest of a step whose rows have masks, once they are there. Nothing else was launched since."""
        undrawn = step.undrawn
        if undrawn is None:
            return
        began = time.monotonic()
        masks = undrawn.wait_for_masks()
        step.waited_s = time.monotonic() - began
        asked_rows = step.inputs.asked_rows.tolist()
        step.masks = {place: masks[row][0] for place, row in enumerate(asked_rows) if masks.get(row)}
        self._masks.apply(undrawn.edited.logits, step.masks)
        computed = self._draw(undrawn.edited)
        self._keep(self._last_tokens, undrawn.edited.asked.seats, computed[0])
        step.answers = self._answers.copy(computed, len(asked_rows))
        step.undrawn = None

    def _cuts_of(self, seats: Ints, *, edited: bool) -> Cuts | None:
        """What the asked rows' draws are told; None when all are greedy and their logits stay as they are."""
        parameters = [self._cuts[seat] or ARGMAX for seat in seats.tolist()]
        if not edited and all(cuts is ARGMAX for cuts in parameters):
            return None
        places = self._seats.num_known[seats] - self._seats.num_prompt[seats]
        seeds = np.array([self._sampling[seat].seed for seat in seats.tolist()], dtype=np.uint64)
        uniforms = uniform(seeds, places.astype(np.uint64))
        uniforms[[cuts is ARGMAX for cuts in parameters]] = 0.0
        return Cuts(parameters, uniforms.tolist())

    def _padded(self, num_rows: int) -> int:
        return self._row_counts[np.searchsorted(self._row_counts, num_rows)]

    def _finish_launched(self, step: _Launched) -> StepResult:
        self._draw_masked(step)
        assert step.answers is not None
        token_ids, sound = step.answers.wait()
        waited = time.monotonic()
        inputs = step.inputs
        answer, rows = Answer(len(inputs.seats)), inputs.asked_rows.tolist()
        sampled = self._as_sampled(token_ids, sound, step.answers.described, step.samplings, step.known, step.masks)
        for row, token in zip(rows, sampled.tokens, strict=True):
            answer.tokens[row] = (token,)
        for place, failure in sampled.failed.items():
            answer.failed[rows[place]], answer.tokens[rows[place]] = failure, ()
        for place, entry in sampled.logprobs.items():
            answer.logprobs[rows[place]] = (entry,)
        seats = inputs.seats[inputs.asked_rows]
        there = self._residence[seats] == step.residence
        without = ~sound | (token_ids < 0)
        seats, known, without = seats[there], step.known[there], without[there]
        # What has no token is no place in an embedding, where steps launched meanwhile look it up.
        self._seats.tokens[seats, known] = token_ids[there].clip(min=0)
        self._num_final[seats] = known + 1
        if without.any():
            self._take_back(seats[without], known[without])
        timings = StepTimings(
            started=step.started,
            ended=time.monotonic(),
            inputs_s=step.launched - step.started,
            forward_s=waited - step.launched - step.waited_s,
            sample_s=time.monotonic() - waited,
        )
        return step_result(step.plan, answer, timings)

    def _take_back(self, seats: Ints, known: Ints) -> None:
        """Rows without a token compute their last one again. Where a step behind has gone on with the seat it is too
        late for that: whoever learns of the failure ends the request."""
        last = self._seats.num_known[seats] == known + 1
        seats, known = seats[last], known[last]
        self._seats.take_back(seats)
        self._num_final[seats] = known
        self._edits.take_back(seats)

    def _as_sampled(
        self,
        token_ids: Ints,
        sound: Bools,
        described: DescribedPlace | None,
        samplings: Sequence[SeatSampling],
        known: Ints,
        masks: Mapping[int, bytes],
    ) -> Sampled:
        """What the device drew. ``samplings``, ``known`` and ``masks`` as ``_Launched`` has them."""
        failed = dict.fromkeys(np.flatnonzero(~sound).tolist(), NOT_FINITE)
        for place in np.flatnonzero(sound & (token_ids < 0)).tolist():
            num_output = int(known[place]) - samplings[place].num_prompt_tokens
            vocab_size, mask = self._sampling.sampler.vocab_size, masks.get(place)
            failed[place] = refusal(samplings[place], num_output, vocab_size, mask)
        tokens, logprobs = token_ids.tolist(), {}
        if described is not None:
            num_top = {
                place: sampling.params.logprobs
                for place, sampling in enumerate(samplings)
                if sampling.params.logprobs is not None and place not in failed
            }
            logprobs = described.entries({place: tokens[place] for place in num_top}, num_top)
        return Sampled(tokens, logprobs, failed)

    # -- what needs the host -------------------------------------------------------------------------------------

    def _launch_careful(
        self, plan: StepPlan, inputs: StepInputs, wait_for_masks: Callable[[], RowMasks], started: float
    ) -> _Careful:
        variant = Variant.LOGITS if len(inputs.asked_rows) else Variant.NOTHING
        host = inputs.forward
        draws = self._sample_op is not None and variant is Variant.LOGITS and not any(plan.row_drafts)
        cuts = self._cuts_of(inputs.seats[inputs.asked_rows], edited=True) if draws else None
        layout = self._inputs.send(inputs, host, self._seats.num_known + self._seats.max_tokens, cuts, None)
        first = host.groups[0]
        step = self._inputs.views(layout, first.max_query_len, first.max_kv_len)
        answer = Answer(len(inputs.seats))
        carry = self._forward.carry(step.forward)
        if self._sampling.describes(plan):
            describe = partial(self._forward.describe, carry, self._sampling.sampler.vocab_size)
            self._sampling.describe_prompts(plan, inputs, describe, answer)
        computed = self._forward.answers(carry, step.forward.asked, variant)
        computing, asked, launched = self._answers.copy((), 0), step.asked if draws else None, time.monotonic()
        return _Careful(self, plan, inputs, computed, asked, computing, answer, wait_for_masks, started, launched)

    @torch.inference_mode()
    def _finish_careful(self, step: _Careful) -> StepResult:
        plan, inputs, answer = step.plan, step.inputs, step.answer
        masks: RowMasks = {}
        if plan.masked_rows:
            began = time.monotonic()
            masks = step.wait_for_masks()
            answer.waited_s = time.monotonic() - began
        step.computing.wait()  # also when nothing was asked: the next steps write where this one's inputs come from
        waited = time.monotonic()
        if step.computed:
            answer.take(plan, inputs, self._sample_careful(step, masks), masks)
        self._seats.advance(inputs.seats, inputs.num_tokens, answer.tokens, plan.row_samples)
        self._num_final[inputs.seats] = self._seats.num_known[inputs.seats]
        timings = StepTimings(
            started=step.started,
            ended=time.monotonic(),
            inputs_s=step.launched - step.started,
            forward_s=waited - step.launched - answer.waited_s,
            sample_s=time.monotonic() - waited,
        )
        return step_result(plan, answer, timings)

    def _sample_careful(self, step: _Careful, masks: RowMasks) -> Sampled:
        """The host samples the rows that need it, the device the others, as it does where none needs the host: what a
        request gets is computed alike whoever is beside it. Where a row has drafts, the host samples all."""
        inputs, (logits,) = step.inputs, step.computed
        seats = inputs.seats[inputs.asked_rows]
        by_host = [place for place, seat in enumerate(seats.tolist()) if self._cuts[seat] is None]
        if step.asked is None or len(by_host) == len(seats):
            return self._sampling.sample(logits.cpu(), inputs, masks)
        # Before the device's edits, which are made in place.
        taken = logits.index_select(0, torch.tensor(by_host, device=logits.device)).cpu() if by_host else None
        given = {place: masks[row][0] for place, row in enumerate(inputs.asked_rows.tolist()) if masks.get(row)}
        answers = self._draw_beside(seats, logits, step.asked, given)
        found = None if taken is None else self._sampling.sample(taken, inputs, masks, by_host)
        samplings, known = [self._sampling[seat] for seat in seats.tolist()], self._seats.num_known[seats]
        sampled = self._as_sampled(*answers.wait(), answers.described, samplings, known, given)
        if sampled.failed:
            self._edits.take_back(seats[list(sampled.failed)])
        return sampled if found is None else sampled.replaced(by_host, found)

    def _draw_beside(
        self, seats: Ints, logits: torch.Tensor, asked: DeviceAsked, masks: Mapping[int, bytes]
    ) -> Answers:
        """Launch the draw of all rows; what it gives those that the host samples means nothing."""
        assert self._sample_op is not None
        described = not self._describing.isdisjoint(seats.tolist())
        if described or masks or self._edits.concern(seats):
            self._edits.expect(seats, self._seats)
            edited = self._edit(logits, asked, described=described)
            self._masks.apply(logits, masks)
            return self._answers.copy(self._draw(edited), len(seats))
        return self._answers.copy(self._sample_op(logits, *asked.cuts), len(seats))

    def _settle(self) -> None:
        """Finish everything that was launched; whoever asks for the results later finds them."""
        while self._open:
            self._open[0].finish()

    def _forget(self, step: _Launched | _Careful) -> None:
        """Steps are finished in their order."""
        while self._open and self._open[0] is not step:
            self._open[0].finish()
        self._open.popleft()


class _Finished:
    careful = False

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def done(self) -> bool:
        return True

    def finish(self) -> StepResult:
        return self._result


@dataclass(frozen=True, slots=True)
class _Edited:
    """Rows before their draw: edited logits, those before when they are to be described, and which were finite then."""

    logits: torch.Tensor
    raw: torch.Tensor | None
    finite: torch.Tensor
    asked: DeviceAsked


@dataclass(frozen=True, slots=True)
class _Undrawn:
    """Rows that wait for the masks of some of them."""

    edited: _Edited
    wait_for_masks: Callable[[], RowMasks]


@dataclass(slots=True, eq=False)
class _Launched:
    """A step whose tokens are on their way to the host, or will be once its masks are there. ``known``, ``residence``
    and ``samplings`` belong to the asked seats, as they were: a seat that was given to another request meanwhile does
    not get the token."""

    runner: DeviceRunner
    plan: StepPlan
    inputs: StepInputs
    answers: Answers | None  # None while ``undrawn``
    undrawn: _Undrawn | None
    known: Ints
    residence: Ints
    samplings: list[SeatSampling]  # when logits were edited
    started: float
    launched: float
    masks: Mapping[int, bytes] = field(default_factory=dict)  # by places among the asked rows
    waited_s: float = 0.0  # for masks
    result: StepResult | None = None
    careful: bool = False

    def done(self) -> bool:
        return self.result is not None or (self.answers is not None and self.answers.done())

    def finish(self) -> StepResult:
        if self.result is None:
            self.runner._forget(self)
            self.result = self.runner._finish_launched(self)
        return self.result


@dataclass(slots=True, eq=False)
class _Careful:
    """A step that is sampled when it is finished; by the host alone where ``asked`` is None."""

    runner: DeviceRunner
    plan: StepPlan
    inputs: StepInputs
    computed: Computed
    asked: DeviceAsked | None
    computing: Answers
    answer: Answer
    wait_for_masks: Callable[[], RowMasks]
    started: float
    launched: float
    result: StepResult | None = None
    careful: bool = True

    def done(self) -> bool:
        return self.result is not None

    def finish(self) -> StepResult:
        if self.result is None:
            self.runner._forget(self)
            self.result = self.runner._finish_careful(self)
        return self.result


def padded_row_counts(max_num_seqs: int) -> list[int]:
    """Row counts that decode steps are recorded for, ascending: few enough to record, close enough that filling costs
    little."""
    counts = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16), *range(544, 4097, 32)]
    return [count for count in counts if count < max_num_seqs] + [max_num_seqs]
