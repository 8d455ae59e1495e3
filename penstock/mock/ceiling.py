"""Ceiling engine: answers at the boundary of the engine process, in the core's place, as fast as a reader takes it.

It shows what a frontend can carry: prefill takes no time, every open request gets one token per step, those that came
while the step ran too, and a step costs copying two columns. Tokens are drawn uniformly from the vocabulary, once, and
then read from a ring at a place that moves. Nothing is scheduled and nothing is checked; what it cannot answer
truthfully it refuses.
"""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.mock.performance import FixedDelay, Performance, StepShape
from penstock.types.control import ControlCommand, ControlReply
from penstock.types.facts import EngineInfo
from penstock.types.output import EngineStats, FailureKind, FinishReason, OutputBatch, Terminal, TokenColumns
from penstock.types.request import GenerateRequest

_RING = 1 << 16  # tokens that are drawn; a step reads as many in a row as it has requests
_STRIDE = 7919  # a prime: how far the place moves in a step
_IDLE_S = 0.5

Emit = Callable[[OutputBatch], None]
"""Hands a batch over and waits while the reader is far behind."""


@dataclass(slots=True)
class _Open:
    request: GenerateRequest
    began: int  # steps before its first one
    admitted: float


class CeilingEngine:
    """Has the methods of an engine. Any thread may call everything but ``run``, which one thread calls once.

    ``performance`` gives a step's seconds; steps come that far apart, whatever the reader does, unless it is so far
    behind that ``emit`` waits.
    """

    def __init__(
        self, info: EngineInfo, emit: Emit, *, vocab_size: int, seed: int = 0, performance: Performance | None = None
    ) -> None:
        self.info = info
        self._emit = emit
        self._performance: Performance = performance or FixedDelay()
        draw = random.Random(seed).randrange
        self._ring = array("i", [draw(vocab_size) for _ in range(_RING)])
        self._inbox: deque[GenerateRequest | tuple[int, ...]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._open: dict[int, _Open] = {}
        self._ids = b""  # of the open requests, as a column; rebuilt when one comes or goes
        self._ends: dict[int, list[int]] = {}  # step -> requests that end with it
        self._terminals: list[Terminal] = []
        self._step = 0
        self._num_tokens = 0

    # -- any thread ----------------------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> None:
        self._inbox.append(request)
        self._wake.set()

    def abort(self, request_ids: Sequence[int]) -> None:
        self._inbox.append(tuple(request_ids))
        self._wake.set()

    def control(self, command: ControlCommand, reply: Callable[[ControlReply], None]) -> None:
        reply(ControlReply(ok=False, message=f"The ceiling mode has nothing to {type(command).__name__}."))

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def health(self) -> str:
        return ""

    # -- the engine's thread -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until ``stop``."""
        due = time.monotonic()
        while not self._stopping:
            self._wake.clear()
            self._take_in()
            if not self._open and not self._terminals:
                self._wake.wait(_IDLE_S)
                due = time.monotonic()
                continue
            delay = self._performance(StepShape(len(self._open), len(self._open), len(self._open), 0))
            if delay:
                due = max(due + delay, time.monotonic())
                self._wait_until(due)
                self._take_in()
            self._run_step()

    def _wait_until(self, due: float) -> None:
        while not self._stopping:
            rest = due - time.monotonic()
            if rest <= 0:
                return
            time.sleep(rest)

    def _take_in(self) -> None:
        changed = bool(self._inbox)
        while self._inbox:
            message = self._inbox.popleft()
            if isinstance(message, GenerateRequest):
                self._admit(message)
            else:
                for request_id in message:
                    self._end(request_id, FinishReason.ABORT)
        if changed:
            self._ids = array("q", self._open).tobytes()

    def _admit(self, request: GenerateRequest) -> None:
        sampling, now = request.sampling, time.monotonic()
        max_tokens = sampling.max_tokens
        if max_tokens is None:
            max_tokens = self.info.max_model_len - len(request.prompt_token_ids)
        self._open[request.request_id] = _Open(request, self._step, now)
        if sampling.logprobs is not None or sampling.prompt_logprobs is not None or sampling.allowed_token_ids:
            told = "The ceiling mode of the mock engine has no log-probabilities and chooses no tokens."
            self._end(request.request_id, FinishReason.ERROR, FailureKind.CONTRADICTION, told)
        elif sampling.structured is not None:
            told = "The ceiling mode of the mock engine cannot constrain answers."
            self._end(request.request_id, FinishReason.ERROR, FailureKind.CONSTRAINT, told)
        elif max_tokens <= 0:
            self._end(request.request_id, FinishReason.LENGTH)
        else:
            self._ends.setdefault(self._step + max_tokens, []).append(request.request_id)

    def _run_step(self) -> None:
        self._step += 1
        count = len(self._open)
        start = self._step * _STRIDE % (_RING - count) if count < _RING else 0
        tokens = self._ring[start : start + count] if count < _RING else self._ring * (count // _RING + 1)
        columns = TokenColumns(self._ids, tokens[:count].tobytes())
        ending = self._ends.pop(self._step, ())
        self._num_tokens += count
        for request_id in ending:
            self._end(request_id, FinishReason.LENGTH)
        if ending:
            self._ids = array("q", self._open).tobytes()
        batch = OutputBatch(columns=columns, terminals=tuple(self._terminals), stats=self._stats())
        self._terminals.clear()
        self._emit(batch)

    def _end(
        self, request_id: int, reason: FinishReason, failure: FailureKind | None = None, message: str = ""
    ) -> None:
        opened = self._open.pop(request_id, None)
        if opened is None:
            return
        request, now = opened.request, time.monotonic()
        num_output = self._step - opened.began
        self._terminals.append(
            Terminal(
                request_id=request_id,
                reason=reason,
                failure=failure,
                message=message,
                num_prompt_tokens=len(request.prompt_token_ids),
                num_output_tokens=num_output,
                arrived=request.arrival_time,
                admitted=opened.admitted,
                first_token=opened.admitted if num_output else 0.0,
                ended=now,
            )
        )

    def _stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._open), num_steps=self._step, generation_tokens=self._num_tokens)
