"""Mock executor: obeys the executor port without weights, with predictable tokens, chosen delays and chosen faults.

A product, not a test double: ``serve --mock`` runs on it. Tokens are a pure function of (seed, request id, position),
so that any schedule of the same request gives the same text. With ``verify`` it keeps a ledger of what every KV
entry holds and refuses plans that break the rules. Knows no text and no core.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from penstock.errors import EngineDeadError, IntegrityError
from penstock.mock.clock import RealClock, WaitableClock
from penstock.mock.faults import NO_FAULTS, MockFaults
from penstock.mock.ledger import KvLedger
from penstock.mock.performance import FixedDelay, Performance, shape_of
from penstock.types.control import ControlCommand, ControlReply
from penstock.types.kv import KvCapacity, KvGroupSpec, TransferJob
from penstock.types.plan import Bitmasks, StepPlan
from penstock.types.request import SamplingParams
from penstock.types.result import RowFailure, StepResult, StepTimings, TokenLogprobs

_MASK = (1 << 64) - 1
_LETTERS = b"etaoinshrdlucmfwypvbgk      ....\n"

TokenFunction = Callable[[int, int, int], int]  # (seed, request id, position) -> token id
AcceptFunction = Callable[[int, int, int], int]  # (request id, position, drafts) -> 0 .. drafts + 1 tokens


def mix(seed: int, request_id: int, position: int) -> int:
    """A well-spread 64-bit number, the same on every machine (finalizer of SplitMix64, Steele et al. 2014)."""
    x = (seed * 0x9E3779B97F4A7C15 + request_id * 0xD1B54A32D192ED03 + position * 0x8CB92BA72F3D8DD7) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def mock_token(seed: int, request_id: int, position: int) -> int:
    """The default token: a byte that reads like text."""
    return _LETTERS[mix(seed, request_id, position) % len(_LETTERS)]


def any_token(vocab_size: int) -> TokenFunction:
    """Tokens spread evenly over a vocabulary."""

    def token_of(seed: int, request_id: int, position: int) -> int:
        return mix(seed, request_id, position) % vocab_size

    return token_of


def accept_one(request_id: int, position: int, num_drafts: int) -> int:
    """The default: every row gives one token."""
    return 1


@dataclass(slots=True)
class _SeatState:
    request_id: int
    sampling: SamplingParams
    num_prompt: int
    prompt: tuple[int, ...]  # kept only while prompt log-probabilities are wanted
    known: int
    computed: int


class MockHandle:
    """A step that is revealed at ``ends_at``. Its result is decided when it is submitted, unless token masks are still
    to come for it or for one before it."""

    def __init__(self, executor: MockExecutor, plan: StepPlan, timings: StepTimings) -> None:
        self.plan = plan
        self.timings = timings
        self.decided: StepResult | None = None
        self._executor = executor
        self._masks: tuple[Sequence[int], Bitmasks] | None = None

    def masks(self, rows: Sequence[int], bitmasks: Bitmasks) -> None:
        if self._masks is not None or not set(rows) <= set(self.plan.masked_rows):
            raise IntegrityError("masks were delivered twice, or for rows that the plan does not name")
        self._masks = rows, bitmasks

    def done(self) -> bool:
        return self._executor.clock.now() >= self.timings.ended

    def result(self) -> StepResult:
        self._executor.clock.sleep_until(self.timings.ended)
        self._executor.reveal(self.plan)
        self._executor.decide(self)
        assert self.decided is not None
        return self.decided

    def take_masks(self) -> dict[int, list[bytes]]:
        """Of each masked row, for the positions that it samples."""
        if not self.plan.masked_rows:
            return {}
        if self._masks is None:
            raise IntegrityError(f"the masks of step {self.plan.step_id} were not delivered before its result")
        rows, given = self._masks
        by_row: dict[int, list[bytes]] = {}
        for row, mask in zip(rows, given() if callable(given) else given, strict=True):
            by_row.setdefault(row, []).append(mask)
        return by_row


def _masked(tokens: tuple[int, ...], drafts: Sequence[int], masks: Sequence[bytes]) -> tuple[int, ...]:
    """Drafts as far as ``tokens`` accepts them and the masks allow them, then a token that its mask allows; nothing
    when there is none."""
    kept: list[int] = []
    for draft, mask in zip(drafts[: len(tokens) - 1], masks, strict=False):
        if _allowed(draft, mask) != draft:
            break
        kept.append(draft)
    last = _allowed(tokens[len(kept)], masks[len(kept)]) if tokens else None
    return (*kept, last) if last is not None else ()


def _allowed(token: int, mask: bytes) -> int | None:
    """``token`` or, in a circle, the next id whose bit is set; None when there is none."""
    bits = int.from_bytes(mask, "little")
    if bits >> token & 1:
        return token
    above = bits >> token
    if above:
        return token + (above & -above).bit_length() - 1
    return (bits & -bits).bit_length() - 1 if bits else None


class MockExecutor:
    """Seats, advance rule and order as in StepPlan. ``clock`` real or virtual; ``depth`` plans may be in flight.

    ``accept`` decides how many tokens a sampling row gives, 0 up to its drafts plus 1. With ``scripts``, requests say
    one of them each, by their ids, and then ``end_id`` for as long as they are asked.
    """

    def __init__(
        self,
        groups: Sequence[KvGroupSpec],
        num_blocks: Sequence[int],
        *,
        depth: int = 2,
        seed: int = 0,
        performance: Performance | None = None,
        faults: MockFaults = NO_FAULTS,
        clock: WaitableClock | None = None,
        token_of: TokenFunction = mock_token,
        accept: AcceptFunction = accept_one,
        scripts: Sequence[Sequence[int]] = (),
        end_id: int | None = None,
        num_seats: int | None = None,
        verify: bool = False,
    ) -> None:
        self.clock: WaitableClock = clock if clock is not None else RealClock()
        self._capacity = KvCapacity(groups=tuple(groups), num_blocks=tuple(num_blocks))
        self._depth = depth
        self._seed = seed
        self._performance: Performance = performance if performance is not None else FixedDelay()
        self._faults = faults
        self._token_of = token_of
        self._accept = accept
        if scripts and end_id is None:
            raise ValueError("scripts need a token that ends them")
        self._scripts = scripts
        self._end_id = end_id
        self._ledger = KvLedger(self._capacity, num_seats) if verify else None
        self._seats: dict[int, _SeatState] = {}
        self._transfers: deque[tuple[int, TransferJob]] = deque()  # (step that reports it, job)
        self._free_at = 0.0
        self._in_flight = 0
        self._deferred: deque[MockHandle] = deque()
        self._dead = ""
        self._stopped = False

    @property
    def depth(self) -> int:
        return self._depth

    def start(self) -> KvCapacity:
        if self._faults.start_error:
            raise EngineDeadError(self._faults.start_error)
        return self._capacity

    def idle(self) -> bool:
        return False

    def health(self) -> str:
        return self._dead

    def stop(self) -> None:
        self._stopped = True
        self._dead = self._dead or "The mock executor was stopped."

    def control(self, command: ControlCommand) -> ControlReply:
        if self._in_flight:
            raise IntegrityError("control was called while plans are in flight")
        return ControlReply(not self._dead, self._dead)

    def step(self, plan: StepPlan) -> MockHandle:
        if self._stopped:
            raise EngineDeadError(self._dead)
        self._in_flight += 1
        if self._in_flight > self._depth:
            raise IntegrityError(f"{self._in_flight} plans are in flight, the executor takes {self._depth}")
        started = max(self.clock.now(), self._free_at)
        deferred = bool(plan.masked_rows or self._deferred)
        if not deferred:
            self._apply(plan)
        context = sum(self._seats[seat].computed for seat in plan.row_seats if seat in self._seats)
        delay = self._performance(shape_of(plan, context)) + self._faults.stalls.get(plan.step_id, 0.0)
        self._free_at = started + delay
        handle = MockHandle(self, plan, StepTimings(started, self._free_at, delay, 0.0))
        if deferred:
            self._deferred.append(handle)
        else:
            handle.decided = self._run(plan, handle.timings, {})
        return handle

    def decide(self, handle: MockHandle) -> None:
        """Carry out the steps up to ``handle`` that had to wait for masks."""
        while handle.decided is None:
            oldest = self._deferred.popleft()
            self._apply(oldest.plan)
            oldest.decided = self._run(oldest.plan, oldest.timings, oldest.take_masks())

    def _apply(self, plan: StepPlan) -> None:
        if self._ledger is not None:
            self._ledger.open_step(plan)
        for seat in plan.dropped:
            del self._seats[seat]
        for admission in plan.admitted:
            wants_prompt = admission.sampling.prompt_logprobs is not None
            self._seats[admission.seat] = _SeatState(
                admission.request_id,
                admission.sampling,
                admission.num_prompt_tokens,
                admission.token_ids[: admission.num_prompt_tokens] if wants_prompt else (),
                len(admission.token_ids),
                admission.num_computed,
            )

    def reveal(self, plan: StepPlan) -> None:
        """A handle was asked for its result. Raises EngineDeadError from the chosen step on."""
        self._in_flight -= 1
        if self._faults.die_at_step is not None and plan.step_id >= self._faults.die_at_step:
            self._dead = self._dead or f"The mock executor died at step {self._faults.die_at_step}, as it was told."
        if self._dead:
            raise EngineDeadError(self._dead)

    # -- one step ------------------------------------------------------------------------------------------------

    def _run(self, plan: StepPlan, timings: StepTimings, masks: Mapping[int, Sequence[bytes]]) -> StepResult:
        row_tokens: list[tuple[int, ...]] = []
        logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = {}
        failed: dict[int, RowFailure] = {}
        step_failed = plan.step_id in self._faults.failed_steps
        for row, seat in enumerate(plan.row_seats):
            state = self._seats[seat]
            num_tokens, samples = plan.row_num_tokens[row], plan.row_samples[row]
            num_drafts = len(plan.row_drafts[row]) if plan.row_drafts else 0
            if state.prompt:
                self._describe_prompt(row, state, num_tokens, prompt_logprobs)
            tokens = self._sample(state, num_drafts) if samples else ()
            if row in masks:
                tokens = _masked(tokens, plan.row_drafts[row] if plan.row_drafts else (), masks[row])
                if not tokens:
                    failed[row] = RowFailure("The token mask of this position allows no token.")
            if self._ledger is not None:
                self._ledger.run_row(seat, num_tokens, num_drafts, samples, tokens)
            state.computed += num_tokens + (len(tokens) - 1 if samples else 0)
            state.known += len(tokens)
            if tokens and state.sampling.logprobs is not None:
                logprobs[row] = tuple(self._logprobs(token, state.sampling.logprobs) for token in tokens)
            if step_failed or state.request_id in self._faults.failed_requests:
                told = self._faults.failed_requests.get(state.request_id, "The mock was told to fail this step.")
                failed[row] = RowFailure(told)
            row_tokens.append(tokens)
        return StepResult(
            step_id=plan.step_id,
            row_tokens=tuple(row_tokens),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            failed_rows=failed,
            finished_transfers=self._finish_transfers(plan),
            timings=timings,
        )

    def _sample(self, state: _SeatState, num_drafts: int) -> tuple[int, ...]:
        accepted = self._accept(state.request_id, state.known, num_drafts)
        if not 0 <= accepted <= num_drafts + 1:
            raise ValueError(f"accept answered {accepted} tokens for {num_drafts} drafts")
        seed, request_id, known = self._seed, state.request_id, state.known
        allowed = state.sampling.allowed_token_ids
        if self._scripts:
            return tuple(self._scripted(state, known + index) for index in range(accepted))
        if accepted == 1 and not allowed:
            return (self._token_of(seed, request_id, known),)
        tokens = tuple(self._token_of(seed, request_id, known + index) for index in range(accepted))
        return tuple(allowed[token % len(allowed)] for token in tokens) if allowed else tokens

    def _scripted(self, state: _SeatState, position: int) -> int:
        script = self._scripts[state.request_id % len(self._scripts)]
        index = position - state.num_prompt
        assert self._end_id is not None
        return script[index] if index < len(script) else self._end_id

    @staticmethod
    def _logprobs(token: int, num_top: int) -> TokenLogprobs:
        """The chosen token leads with one half, the next ids share the rest by halving."""
        ids = [token, *(other for other in range(num_top) if other != token)][: max(1, num_top)]
        return TokenLogprobs(tuple(ids), tuple(-0.6931471805599453 * (index + 1) for index in range(len(ids))), 1)

    def _describe_prompt(
        self, row: int, state: _SeatState, num_tokens: int, answers: dict[int, tuple[TokenLogprobs, ...]]
    ) -> None:
        end = min(state.computed + num_tokens, state.num_prompt - 1)
        top = state.sampling.prompt_logprobs or 0
        positions = range(state.computed + 1, end + 1)
        if positions:
            answers[row] = tuple(self._logprobs(state.prompt[position], top) for position in positions)

    def _finish_transfers(self, plan: StepPlan) -> tuple[tuple[int, bool], ...]:
        self._transfers.extend((plan.step_id + self._faults.transfer_steps, job) for job in plan.transfers)
        finished: list[tuple[int, bool]] = []
        while self._transfers and self._transfers[0][0] <= plan.step_id:
            _, job = self._transfers.popleft()
            ok = self._faults.transfer_ok(job.job_id)
            if self._ledger is not None:
                self._ledger.finish_transfer(job, ok)
            finished.append((job.job_id, ok))
        return tuple(finished)
