"""The engine core: owns the order of side effects between requests, scheduler, executor and outputs.

Knows neither threads, sockets nor text. The owner calls from one thread: ``add``, ``abort``, ``control`` and, while
``has_work``, ``step``. Every request that was added gets exactly one Terminal through the output channel, after all
of its updates, whatever happens: also when the executor dies.

One turn: results that are there are absorbed, the next plan is made and submitted while earlier ones run, and when
as many plans are in flight as the executor takes, or nothing could be planned, the oldest result is waited for.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.core.integrity import check_core
from penstock.core.kv.manager import KvManager
from penstock.core.ports import Clock, Constraints, DraftSource, Executor, KvTier, OutputChannel, StepHandle
from penstock.core.requests import RequestState, RequestStatus
from penstock.core.scheduler.budget import CoreLimits
from penstock.core.scheduler.policy import POLICIES
from penstock.core.scheduler.scheduler import Scheduler
from penstock.core.stops import COMPLETE, Stop, accept_tokens, length_stop
from penstock.core.transfers import TransferTracker
from penstock.errors import EngineDeadError, IntegrityError
from penstock.types.control import CheckIntegrity, ControlCommand, ControlReply, ResetPrefixCache
from penstock.types.kv import KvCapacity
from penstock.types.output import EngineStats, FailureKind, FinishReason, OutputBatch, Terminal, TokenUpdate
from penstock.types.plan import StepPlan
from penstock.types.request import GenerateRequest
from penstock.types.result import RowFailure, StepResult, TokenLogprobs
from penstock.types.structured import ConstraintStats

__all__ = ["CoreLimits", "EngineCore"]

_NO_CONSTRAINTS = ConstraintStats()


@dataclass(slots=True)
class _Flight:
    """A plan without result. ``rows[r]`` is the request of row r."""

    plan: StepPlan
    rows: list[RequestState]
    handle: StepHandle
    needs_masks: bool


class EngineCore:
    """``executor`` has been started and answered ``capacity``. ``model_identity`` is part of every block hash."""

    def __init__(
        self,
        executor: Executor,
        capacity: KvCapacity,
        limits: CoreLimits,
        channel: OutputChannel,
        clock: Clock,
        model_identity: str,
        tiers: Sequence[KvTier] = (),
        drafter: DraftSource | None = None,
        constraints: Constraints[Any] | None = None,
    ) -> None:
        self.limits = limits
        self._executor = executor
        self._channel = channel
        self._clock = clock
        self._order_of = POLICIES[limits.policy]
        self._kv = KvManager(capacity, model_identity=model_identity, caching=limits.prefix_caching)
        self._transfers = TransferTracker(self._kv, tiers)
        self._scheduler = Scheduler(self._kv, self._transfers, limits, outgrown=self._fail_outgrown, drafter=drafter)
        self._requests: dict[int, RequestState] = {}  # those that owe a terminal
        self._held: dict[int, RequestState] = {}
        self._flights: deque[_Flight] = deque()
        self._constraints = constraints
        self._compiling: dict[int, RequestState] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._updates: list[TokenUpdate] = []
        self._terminals: list[Terminal] = []
        self._dead = ""
        self.death: EngineDeadError | None = None  # what the executor died of, with its cause, for the owner
        self._num_added = 0
        self._num_steps = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._forward_s = 0.0
        self._sample_s = 0.0
        self._inputs_s = 0.0
        self._plan_s = 0.0
        self._results_s = 0.0
        self._outputs_s = 0.0
        self._accept_s = 0.0
        self._num_masked_rows = 0

    # -- what the owner asks -------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._held or self._flights)

    @property
    def num_open(self) -> int:
        """Requests that owe their terminal."""
        return len(self._requests)

    def idle(self) -> bool:
        """Let the executor use a moment without work. False when it has no use for it."""
        return not self._dead and not self.has_work and self._executor.idle()

    def health(self) -> str:
        """An empty string when well, else a sentence."""
        return self._dead or self._executor.health()

    def add(self, request: GenerateRequest) -> None:
        """Take a request in. What is wrong with it is answered by its Terminal. Raises ValueError for a used id."""
        if request.request_id in self._requests or request.request_id in self._held:
            raise ValueError(f"request id {request.request_id} is in use")
        sampling, num_prompt = request.sampling, len(request.prompt_token_ids)
        longest = self.limits.max_model_len
        if sampling.max_tokens is not None:
            longest = min(longest, num_prompt + sampling.max_tokens)
        order = self._order_of(request, self._num_added)
        blocks = self._kv.open(request.cache_salt, request.extra_keys)
        state = RequestState(request, order, longest, blocks)
        self._num_added += 1
        self._requests[state.id] = state
        if sampling.structured is None:
            self._scheduler.add(state)
        else:
            state.move_to(RequestStatus.WAITING_GRAMMAR)
        if self._dead:
            self._fail(state, FailureKind.ENGINE_DEAD, self._dead)
        elif not num_prompt:
            self._fail(state, FailureKind.INTERNAL, "The prompt has no tokens.")
        elif num_prompt > longest or (num_prompt == longest and sampling.max_tokens != 0):
            self._fail(state, FailureKind.TOO_LONG, _too_long_for_model(num_prompt, self.limits.max_model_len))
        elif sampling.max_tokens == 0 and sampling.prompt_logprobs is None:
            self._end(state, FinishReason.LENGTH)
        elif not self._kv.can_ever_hold(num_prompt):
            self._fail_outgrown(state)
        else:
            if request.deadline is not None:
                heapq.heappush(self._deadlines, (request.deadline, state.id))
            if sampling.structured is not None:
                self._constrain(state)
        self._flush()

    def abort(self, request_ids: Iterable[int]) -> None:
        """End requests now. Unknown and ended ids are ignored; rows in flight are computed and discarded."""
        for request_id in request_ids:
            request = self._requests.get(request_id)
            if request is not None:
                self._end(request, FinishReason.ABORT)
        self._flush()

    def control(self, command: ControlCommand) -> ControlReply:
        """Wait for the plans in flight, then carry the command out here and in the executor."""
        try:
            while self._flights:
                self._absorb_oldest()
            self._flush()
            if self._dead:
                return ControlReply(False, self._dead)
            if isinstance(command, ResetPrefixCache):
                self._kv.forget_unreferenced()
            elif isinstance(command, CheckIntegrity):
                self.check_integrity()
            return self._executor.control(command)
        except IntegrityError as error:
            return ControlReply(False, str(error))
        except EngineDeadError as error:
            self.death = error
            self.fail_all(str(error))
            return ControlReply(False, str(error))

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_held=len(scheduler.postponed) + len(self._held),
            kv_usage=self._kv.usage,
            prefix_query_tokens=scheduler.prefix_query_tokens,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_steps=self._num_steps,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            forward_s=self._forward_s,
            sample_s=self._sample_s,
            inputs_s=self._inputs_s,
            plan_s=self._plan_s,
            results_s=self._results_s,
            outputs_s=self._outputs_s,
            num_compiling=len(self._compiling),
            num_masked_rows=self._num_masked_rows,
            accept_s=self._accept_s,
            constraints=_NO_CONSTRAINTS if self._constraints is None else self._constraints.stats(),
        )

    def check_integrity(self) -> None:
        """Raises IntegrityError naming every invariant that does not hold."""
        rows = [request for flight in self._flights for request in flight.rows]
        check_core(self._scheduler, self._transfers, self._requests.values(), self._held.values(), rows)
        if not self.has_work and self._kv.usage:
            raise IntegrityError("blocks are in use although there is no work")

    def fail_all(self, message: str) -> None:
        """The executor is gone: end every open request with ENGINE_DEAD, and every one that comes later."""
        self._dead = self._dead or message or "The executor has stopped."
        self._flights.clear()
        for request in list(self._requests.values()):
            request.in_flight = 0
            self._fail(request, FailureKind.ENGINE_DEAD, self._dead)
        for request in self._transfers.cancel_all():
            self._let_go(request)
        self._flush()

    # -- constraints ---------------------------------------------------------------------------------------------

    def _constrain(self, request: RequestState) -> None:
        """Compile what the answer must look like; the request waits beside the queue, in which nobody waits for it."""
        if self._constraints is None:
            self._fail(request, FailureKind.CONSTRAINT, "This engine cannot constrain answers.")
            return
        request.constraint = self._constraints.constrain(request.request.sampling)
        self._compiling[request.id] = request
        self._take_compiled()

    def _take_compiled(self) -> bool:
        """Queue those whose constraint is compiled, each at the place that its arrival gave it; end those whose is
        not."""
        moved = False
        for request in list(self._compiling.values()):
            constraint = request.constraint
            assert constraint is not None
            if constraint.done:
                moved = True
                del self._compiling[request.id]
                if constraint.problem:
                    self._fail(request, FailureKind.CONSTRAINT, constraint.problem)
                else:
                    constraint.open()
                    request.move_to(RequestStatus.WAITING)
                    self._scheduler.add(request)
        return moved

    def _fill_masks(self) -> None:
        """Have the masks of the oldest plan filled: every token before its rows is known."""
        flight = self._flights[0] if self._flights else None
        if flight is None or not flight.needs_masks:
            return
        flight.needs_masks = False
        assert self._constraints is not None
        plan = flight.plan
        rows, wanted = [], []
        for row in plan.masked_rows:
            request = flight.rows[row]
            drafts = plan.row_drafts[row] if plan.row_drafts else ()
            rows.extend([row] * (len(drafts) + 1))
            wanted.append((request.constraint if request.is_open else None, drafts))
        self._num_masked_rows += len(wanted)
        flight.handle.masks(rows, self._constraints.fill(wanted))

    def _follow(self, request: RequestState, tokens: Sequence[int], stop: Stop | None) -> Stop | None:
        """Lead a constraint on by the tokens of its answer; answers whether the request ends."""
        constraint = request.constraint
        assert constraint is not None
        began = self._clock.now()
        constraint.accept(tokens)
        terminated = not constraint.problem and constraint.is_terminated
        self._accept_s += self._clock.now() - began
        if not terminated:
            return stop
        if stop is not None:
            return COMPLETE if stop.token_id is None else stop
        # Next comes an end token, and nothing else; where none may come, the answer is complete as it is.
        no_end = request.request.sampling.ignore_eos or not request.stop_ids or len(request.tokens) < request.min_known
        return COMPLETE if no_end else None

    # -- one turn ------------------------------------------------------------------------------------------------

    def step(self, block: bool) -> bool:
        """One turn. With ``block`` it may wait for the oldest result. False when there was nothing to do or to learn:
        the owner may then sleep a little, or until a request arrives when there is no work at all."""
        if self._dead:
            return False
        try:
            moved = self._turn(block)
        except EngineDeadError as error:
            self.death = error
            self.fail_all(str(error))
            return True
        moved = moved or bool(self._updates or self._terminals)
        self._flush()
        if self.limits.check_integrity:
            self.check_integrity()
        return moved

    def _turn(self, block: bool) -> bool:
        flights = self._flights
        moved = False
        if self._deadlines:
            self._expire()
        if self._compiling:
            moved |= self._take_compiled()
        while flights and flights[0].handle.done():
            moved |= self._absorb_oldest()
        depth = self._executor.depth
        plan = self._submit() if len(flights) < depth else None
        if plan is not None:
            moved |= not plan.is_empty
        if flights and block and (plan is None or len(flights) >= depth):
            moved |= self._absorb_oldest()
        return moved

    def _submit(self) -> StepPlan | None:
        # Transfers are reported in results only: while nothing else runs, empty plans carry their reports.
        began = self._clock.now()
        allow_empty = self._transfers.num_outstanding > 0 and not self._flights
        scheduled = self._scheduler.schedule(self._num_steps, allow_empty=allow_empty)
        if scheduled is None:
            return None
        plan, rows = scheduled
        self._num_steps += 1
        if plan.admitted:
            now = self._clock.now()
            for admission in plan.admitted:
                request = self._requests[admission.request_id]
                request.admitted_at = request.admitted_at or now
        self._flights.append(_Flight(plan, rows, self._executor.step(plan), bool(plan.masked_rows)))
        self._fill_masks()
        self._plan_s += self._clock.now() - began
        return plan

    def _expire(self) -> None:
        now = self._clock.now()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            request = self._requests.get(request_id)
            if request is not None:
                self._fail(request, FailureKind.DEADLINE, "The request's deadline has passed.")

    # -- results -------------------------------------------------------------------------------------------------

    def _absorb_oldest(self) -> bool:
        """Wait for the oldest result and apply it. True when it brought news."""
        flight = self._flights[0]
        result = flight.handle.result()
        began = self._clock.now()
        self._flights.popleft()
        if result.step_id != flight.plan.step_id or len(result.row_tokens) != len(flight.rows):
            raise IntegrityError(f"step {flight.plan.step_id} was answered by a result of another shape")
        self._forward_s += result.timings.forward_s
        self._sample_s += result.timings.sample_s
        self._inputs_s += result.timings.inputs_s
        for job_id, ok in result.finished_transfers:
            self._let_go(self._transfers.complete(job_id, ok))
        if flight.rows:
            self._absorb_rows(flight, result)
        self._fill_masks()
        self._results_s += self._clock.now() - began
        return bool(flight.rows or result.finished_transfers)

    def _absorb_rows(self, flight: _Flight, result: StepResult) -> None:
        # The other hot loop; what does not happen on every row is behind a flag or a threshold.
        plan, now, updates = flight.plan, self._clock.now(), self._updates
        drafts = plan.row_drafts
        has_extras = bool(result.logprobs or result.prompt_logprobs or result.failed_rows)
        running, preempted = RequestStatus.RUNNING, RequestStatus.PREEMPTED
        num_terminals = len(self._terminals)
        row = -1
        for request, tokens, num_tokens, samples in zip(
            flight.rows, result.row_tokens, plan.row_num_tokens, plan.row_samples, strict=True
        ):
            row += 1
            request.in_flight -= 1
            status = request.status
            start = request.computed
            if status is running:
                advance = num_tokens
                if samples:
                    new = len(tokens) - 1
                    advance += new
                    request.expected += new
                request.planned += advance - num_tokens - (len(drafts[row]) if drafts else 0)
                request.computed = start + advance
                if start < request.num_prompt:
                    self._prompt_tokens += min(request.computed, request.num_prompt) - start
            elif status is not preempted or request.wants_prompt_logprobs:
                # Ended while this row was in flight; or its prompt log-probabilities come again with the next
                # residence, and no token may overtake them.
                continue
            prompt_logprobs: tuple[TokenLogprobs, ...] = ()
            if has_extras:
                if row in result.failed_rows:
                    failed = result.failed_rows[row]
                    self._fail_row(request, failed)
                    continue
                if row in result.prompt_logprobs:
                    prompt_logprobs = _take_prompt_logprobs(request, start, result.prompt_logprobs[row])
            stop: Stop | None = None
            if tokens:
                kept, stop = accept_tokens(request, tokens)
                if kept < len(tokens):
                    tokens = tokens[:kept]
                if request.constraint is not None:
                    stop = self._follow(request, tokens, stop)
                self._generation_tokens += kept
                if request.first_token_at == 0.0:
                    request.first_token_at = now
            elif not samples:
                stop = length_stop(request)
            if tokens or prompt_logprobs:
                logprobs = result.logprobs.get(row, ())[: len(tokens)] if has_extras else ()
                updates.append(TokenUpdate(request.id, tokens, logprobs, prompt_logprobs))
            if status is running and request.computed >= request.blocks.next_event:
                self._advance_blocks(request)
            if stop is not None:
                self._end(request, stop.reason, stop_token_id=stop.token_id, compact=False)
            elif request.constraint is not None and request.constraint.problem:
                self._fail(request, FailureKind.CONSTRAINT, request.constraint.problem, compact=False)
        if len(self._terminals) > num_terminals:
            self._scheduler.compact_running()

    def _advance_blocks(self, request: RequestState) -> None:
        # Tokens behind a stop were computed but are not part of the request.
        confirmed = min(request.computed, len(request.tokens))
        sealed = self._kv.seal(request.blocks, request.tokens, confirmed)
        if sealed and self._transfers.tiers:
            self._transfers.offer(request, sealed)
        self._kv.free_passed(request.blocks, confirmed)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _fail_outgrown(self, request: RequestState) -> None:
        blocks = ", ".join(str(pool.num_blocks) for pool in self._kv.pools)
        message = (
            f"The request has {request.known} tokens and does not fit the KV cache even alone ({blocks} blocks).\n\n"
            "Give the cache more memory with --kv-cache-memory, or shorten the prompt or max_tokens."
        )
        self._fail(request, FailureKind.TOO_LONG, message)

    def _fail_row(self, request: RequestState, failed: RowFailure) -> None:
        """A row without a token. A constraint that cannot go on gives a mask that allows none."""
        if request.constraint is not None and request.constraint.problem:
            self._fail(request, FailureKind.CONSTRAINT, request.constraint.problem, compact=False)
        else:
            kind = FailureKind.CONTRADICTION if failed.by_request else FailureKind.INTERNAL
            self._fail(request, kind, failed.message, compact=False)

    def _fail(self, request: RequestState, failure: FailureKind, message: str, *, compact: bool = True) -> None:
        self._end(request, FinishReason.ERROR, failure=failure, message=message, compact=compact)

    def _end(
        self,
        request: RequestState,
        reason: FinishReason,
        *,
        failure: FailureKind | None = None,
        message: str = "",
        stop_token_id: int | None = None,
        compact: bool = True,
    ) -> None:
        """The only place where a Terminal is made. Seat and blocks are free for the plan that is made next."""
        del self._requests[request.id]
        if self._compiling.pop(request.id, None) is not None and request.constraint is not None:
            request.constraint.drop()
        self._scheduler.remove(request, compact=compact)
        if request.num_jobs:
            request.move_to(RequestStatus.HELD)
            self._held[request.id] = request
        else:
            request.move_to(RequestStatus.FINISHED)
        self._terminals.append(
            Terminal(
                request_id=request.id,
                reason=reason,
                failure=failure,
                message=message,
                stop_token_id=stop_token_id,
                num_prompt_tokens=request.num_prompt,
                num_output_tokens=request.num_output,
                num_cached_tokens=request.num_cached_tokens,
                num_preemptions=request.num_preemptions,
                arrived=request.request.arrival_time,
                admitted=request.admitted_at,
                first_token=request.first_token_at,
                ended=self._clock.now(),
            )
        )

    def _let_go(self, request: RequestState) -> None:
        """A transfer has ended; a request that only waited for it is over."""
        if request.num_jobs == 0 and request.status is RequestStatus.HELD:
            request.move_to(RequestStatus.FINISHED)
            del self._held[request.id]

    def _flush(self) -> None:
        if self._updates or self._terminals:
            began = self._clock.now()
            batch = OutputBatch(tuple(self._updates), tuple(self._terminals), self.stats())
            self._updates.clear()
            self._terminals.clear()
            self._channel.emit(batch)
            self._outputs_s += self._clock.now() - began


def _take_prompt_logprobs(
    request: RequestState, start: int, entries: tuple[TokenLogprobs, ...]
) -> tuple[TokenLogprobs, ...]:
    """Those that the client has not had before a preemption. ``entries[0]`` describes position ``start`` + 1."""
    new = entries[max(0, request.prompt_logprobs_done - start) :]
    request.prompt_logprobs_done += len(new)
    return new


def _too_long_for_model(num_prompt: int, max_model_len: int) -> str:
    return (
        f"The prompt has {num_prompt} tokens, but the model's context is {max_model_len} tokens, of which at least "
        "one is for the answer."
    )
