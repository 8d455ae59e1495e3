"""Generation: all sequences of one HTTP request, from submission to their last terminals.

The token path is plain calls on the event loop's thread: engine -> SequenceState -> TextStream -> Listener.
No task, queue or await per token. Knows text deltas, not how they are written to a client.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import UNSET

from penstock.frontend.openai.answers import OutputDetails, TokensDetails, Usage
from penstock.frontend.openai.errors import HttpError, failure_of, problem_of
from penstock.frontend.service import Service
from penstock.frontend.text.answer_stream import AnswerStream
from penstock.frontend.text.requests import PreparedRequest
from penstock.frontend.text.stream import TextDelta, TextFold, TextStream
from penstock.types.output import Terminal, TokenUpdate
from penstock.types.request import GenerateRequest

_LOG = logging.getLogger(__name__)


class Listener(Protocol):
    """Who writes the answer. Every call comes on the event loop's thread and must not block."""

    def deliver(self, index: int, delta: TextDelta) -> None:
        """News of a choice, in order; the last ones have a ``finish_reason``."""

    def plain_writer(self, index: int) -> PlainWriter | None:
        """A shorter way for news of this choice that are text alone; None when there is none, now or for ever."""

    def on_problem(self, problem: HttpError) -> None:
        """The request has failed as a whole. Nothing is delivered after it."""

    def on_finished(self) -> None:
        """Every sequence has had its terminal: nothing of this request is left in the engine."""

    def on_shut_down(self) -> None:
        """The server ends: whatever the client has not read is not waited for."""


class PlainWriter(Protocol):
    """Writes chunks of one choice that have nothing but text."""

    @property
    def congested(self) -> bool:
        """The client is behind: use ``Listener.deliver``, which merges."""

    def write(self, text: bytes) -> None:
        """``text`` is escaped for a JSON string."""


class _Nobody:
    """Listens to what is left of a request after its answer."""

    def deliver(self, index: int, delta: TextDelta) -> None: ...

    def plain_writer(self, index: int) -> PlainWriter | None:
        return None

    def on_problem(self, problem: HttpError) -> None: ...

    def on_finished(self) -> None: ...

    def on_shut_down(self) -> None: ...


_NOBODY = _Nobody()


class Generation:
    """Choices are numbered prompt by prompt: choice p * n + i is the i-th answer to prompt p.

    The first failure of a sequence ends the whole request: ``problem`` is set, the listener is told once, and nothing
    is delivered after it.
    """

    def __init__(self, service: Service, prepared: Sequence[PreparedRequest], listener: Listener) -> None:
        self.service = service
        self.prepared = prepared
        self.listener = listener
        self.problem: HttpError | None = None
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
        submitted = 0
        try:
            if self._num_open > 1:
                service.client.claim([sequence.request.request_id for sequence in self._sequences])
            for sequence in self._sequences:
                service.client.submit(sequence.request, sequence)
                submitted += 1
        except Exception:
            self.abort()  # first: whoever hears of the last end must not take it for a success
            for _ in self._sequences[submitted:]:
                self.sequence_ended()
            raise
        for request in self.prepared:
            service.metrics.on_submitted(request.sampling.n, request.sampling.max_tokens)

    def abort(self) -> None:
        """Nobody listens any more: deliver nothing and end what is open in the engine. Idempotent."""
        self.silent = True
        open_ids = [sequence.request.request_id for sequence in self._sequences if sequence.terminal is None]
        if open_ids:
            self.service.client.abort(open_ids)

    def close(self) -> None:
        """The answer is over, whatever the engine still says: ``abort``, and let go of everybody.

        What holds each other in a ring stays until the garbage collector walks over all that is there, which takes
        milliseconds when requests are many.
        """
        self.abort()
        self.service.generations.discard(self)
        self._sequences = []
        self.listener = _NOBODY

    def fail(self, problem: HttpError) -> None:
        """End the request with ``problem``; later calls are ignored."""
        if self.silent:
            return
        self.problem = problem
        self.abort()
        self.listener.on_problem(problem)

    def shut_down(self, problem: HttpError) -> None:
        """The server ends: ``fail``, also when the engine has finished and only the client has not read it all."""
        self.fail(problem)
        self.listener.on_shut_down()

    def sequence_ended(self) -> None:
        """One sequence has left the engine."""
        self._num_open -= 1
        self.service.admission.release()
        if self._num_open == 0:
            self.listener.on_finished()

    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once, however many answers it gets."""
        prompt = sum(len(request.prompt_token_ids) for request in self.prepared)
        completion = sum(sequence.text.num_output_tokens for sequence in self._sequences)
        cached = sum(
            sequence.terminal.num_cached_tokens
            for sequence in self._sequences
            if sequence.leads_prompt and sequence.terminal is not None
        )
        read = [sequence.text for sequence in self._sequences if isinstance(sequence.text, AnswerStream)]
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=TokensDetails(cached_tokens=cached),
            completion_tokens_details=OutputDetails(reasoning_tokens=sum(text.num_reasoning_tokens for text in read))
            if read
            else UNSET,
        )


class SequenceState:
    """One choice in the engine, and its sink there.

    Text alone takes the short way, ``on_tokens``, once the first chunk has gone out and where the listener has one.
    """

    __slots__ = (
        "_generation", "_last_output", "_metrics", "_push_plain", "_writer", "index", "leads_prompt", "may_be_plain",
        "request", "terminal", "text",
    )  # fmt: skip

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
        self._push_plain: Callable[[Sequence[int]], bytes] | None = None
        if isinstance(text, TextStream) and text.is_plain:  # what a dialect reads may turn out to be more than text
            self._push_plain = text.push_plain
        self.may_be_plain = self._push_plain is not None
        self._metrics = generation.service.metrics
        self._writer: PlainWriter | None = None

    def on_tokens(self, token_ids: Sequence[int], now: float) -> None:
        """Tokens that come with nothing else, at ``now``. Never raises."""
        writer, push_plain = self._writer, self._push_plain
        if writer is None or push_plain is None or writer.congested or self._generation.silent:
            self((TokenUpdate(self.request.request_id, tuple(token_ids)),), None)
            if writer is None and self.may_be_plain:
                self._writer = self._generation.listener.plain_writer(self.index)
                self.may_be_plain = self._writer is not None
            return
        try:
            text = push_plain(token_ids)
            metrics = self._metrics
            if now != metrics.seen_at:  # the first of this round: the engine's statistics came with it
                metrics.seen_at = now
                metrics.on_stats(self._generation.service.client.stats())
            metrics.on_later_tokens(len(token_ids), now - self._last_output)
            self._last_output = now
            writer.write(text)
        except Exception:  # noqa: BLE001 - as in __call__
            self._fail()

    def __call__(self, updates: Sequence[TokenUpdate], terminal: Terminal | None) -> None:
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
                generation.listener.deliver(self.index, delta)
        except Exception:  # noqa: BLE001 - the boundary of one request
            self._fail()
        if terminal is not None:
            self.terminal = terminal
            reason = self.text.finish_reason or "error"
            generation.service.metrics.on_terminal(terminal, reason, self.request.arrival_time, now)
            generation.sequence_ended()

    def _fail(self) -> None:
        _LOG.exception("request %d failed in the frontend", self.request.request_id)
        self._generation.fail(HttpError(500, "The server failed while it wrote the answer.", code="internal"))

    def _read(self, updates: Sequence[TokenUpdate], terminal: Terminal | None, now: float) -> TextDelta:
        text = self.text
        metrics = self._metrics
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
