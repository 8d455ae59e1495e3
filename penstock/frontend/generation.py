"""Generation: all sequences of one HTTP request, from submission to their last terminals.

The token path is plain calls on the event loop's thread: engine -> Sequence.on_output -> TextStream -> ``deliver``.
No task, queue or await per token. Knows text deltas, not how they are written to a client.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from penstock.errors import PenstockError
from penstock.frontend.openai.answers import TokensDetails, Usage
from penstock.frontend.openai.errors import HttpError, failure_of, problem_of
from penstock.frontend.service import Service
from penstock.frontend.text.answer_stream import AnswerStream
from penstock.frontend.text.requests import PreparedRequest
from penstock.frontend.text.stream import TextDelta, TextFold, TextStream
from penstock.types.output import Terminal, TokenUpdate
from penstock.types.request import GenerateRequest

_LOG = logging.getLogger(__name__)

Deliver = Callable[[int, TextDelta], None]
"""Called with the choice's index and its news, in order; the last news of a choice has a ``finish_reason``."""


class Generation:
    """Choices are numbered prompt by prompt: choice p * n + i is the i-th answer to prompt p.

    ``finished`` completes when every sequence has had its terminal, so that nothing of this request is left in the
    engine. The first failure of a sequence ends the whole request: ``problem`` is set, ``on_problem`` is called once,
    and nothing is delivered after it.
    """

    def __init__(
        self,
        service: Service,
        prepared: Sequence[PreparedRequest],
        deliver: Deliver,
        on_problem: Callable[[HttpError], None],
    ) -> None:
        self.service = service
        self.prepared = prepared
        self.deliver = deliver
        self.problem: HttpError | None = None
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_problem = on_problem
        self.silent = False
        self._sequences = [
            SequenceState(self, index, child, request.make_stream(position), position == 0)
            for index, (request, position, child) in enumerate(
                (request, position, child) for request in prepared for position, child in enumerate(request.children)
            )
        ]
        self._num_open = len(self._sequences)

    def start(self) -> None:
        """Take places in the queue and submit everything. Raises OverloadedError or EngineDeadError, then nothing is
        left behind."""
        service = self.service
        service.admission.acquire(self._num_open)
        service.generations.add(self)
        for position, sequence in enumerate(self._sequences):
            try:
                service.client.submit(sequence.request, sequence.on_output)
            except PenstockError:
                for _ in self._sequences[position:]:
                    self.sequence_ended()
                self.abort()
                raise
        for request in self.prepared:
            service.metrics.on_submitted(request.sampling.n, request.sampling.max_tokens)

    def abort(self) -> None:
        """Nobody listens any more: deliver nothing and end what is open in the engine. Idempotent."""
        self.silent = True
        open_ids = [sequence.request.request_id for sequence in self._sequences if sequence.terminal is None]
        if open_ids:
            self.service.client.abort(open_ids)

    def fail(self, problem: HttpError) -> None:
        """End the request with ``problem``; later calls are ignored."""
        if self.silent:
            return
        self.problem = problem
        self.abort()
        self._on_problem(problem)

    def sequence_ended(self) -> None:
        """One sequence has left the engine."""
        self._num_open -= 1
        self.service.admission.release()
        if self._num_open == 0:
            self.service.generations.discard(self)
            if not self.finished.done():
                self.finished.set_result(None)

    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once, however many answers it gets."""
        prompt = sum(len(request.prompt_token_ids) for request in self.prepared)
        completion = sum(sequence.text.num_output_tokens for sequence in self._sequences)
        cached = sum(
            sequence.terminal.num_cached_tokens
            for sequence in self._sequences
            if sequence.leads_prompt and sequence.terminal is not None
        )
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=TokensDetails(cached_tokens=cached),
        )


class SequenceState:
    """One choice in the engine; ``on_output`` is its sink."""

    __slots__ = ("_generation", "_last_output", "index", "leads_prompt", "request", "terminal", "text")

    def __init__(
        self,
        generation: Generation,
        index: int,
        request: GenerateRequest,
        text: TextStream | AnswerStream,
        leads_prompt: bool,
    ) -> None:
        self._generation = generation
        self._last_output = 0.0
        self.index = index
        self.request = request
        self.text = text
        self.leads_prompt = leads_prompt
        self.terminal: Terminal | None = None

    def on_output(self, updates: Sequence[TokenUpdate], terminal: Terminal | None) -> None:
        """News from the engine. Never raises: a bug here ends this request, not the others."""
        if self.terminal is not None:
            return
        generation = self._generation
        now = time.monotonic()
        try:
            delta = self._read(updates, terminal, now)
            if delta.abort and terminal is None:
                generation.service.client.abort([self.request.request_id])
            if delta.failure is not None:
                generation.fail(problem_of(failure_of(delta.failure)))
            elif not generation.silent and not delta.is_empty:
                generation.deliver(self.index, delta)
        except Exception:  # noqa: BLE001 - the boundary of one request
            _LOG.exception("request %d failed in the frontend", self.request.request_id)
            generation.fail(HttpError(500, "The server failed while it wrote the answer.", code="internal"))
        if terminal is not None:
            self.terminal = terminal
            reason = self.text.finish_reason or "error"
            generation.service.metrics.on_terminal(terminal, reason, self.request.arrival_time, now)
            generation.sequence_ended()

    def _read(self, updates: Sequence[TokenUpdate], terminal: Terminal | None, now: float) -> TextDelta:
        text = self.text
        metrics = self._generation.service.metrics
        metrics.on_stats(self._generation.service.client.stats())
        deltas: list[TextDelta] = []
        for update in updates:
            if update.token_ids and text.finish_reason is None:
                first = self._last_output == 0.0
                since = self.request.arrival_time if first else self._last_output
                num_prompt = len(self.request.prompt_token_ids)
                metrics.on_tokens(len(update.token_ids), num_prompt, since, now, first)
                self._last_output = now
            deltas.append(text.on_update(update))
        if terminal is not None:
            deltas.append(text.on_terminal(terminal))
        return deltas[0] if len(deltas) == 1 else fold_deltas(deltas)


def fold_deltas(deltas: Sequence[TextDelta]) -> TextDelta:
    """Several news of one choice as one, which a client cannot tell apart from a faster engine."""
    fold = TextFold()
    for delta in deltas:
        fold.add(delta)
    return delta_of(fold, abort=any(delta.abort for delta in deltas))


def delta_of(fold: TextFold, *, abort: bool = False) -> TextDelta:
    return TextDelta(
        fold.text,
        tuple(fold.token_ids),
        tuple(fold.scores),
        tuple(fold.prompt_scores),
        fold.finish_reason,
        fold.stop_reason,
        abort,
        fold.failure,
        fold.events,
    )
