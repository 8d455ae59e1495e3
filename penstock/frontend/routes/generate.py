"""What all generation routes share: run a Generation and write it as a stream or as one answer."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence

from penstock.errors import InvalidRequestError
from penstock.frontend.dialects.contract import Reading
from penstock.frontend.exchange import Exchange
from penstock.frontend.generation import Generation, PlainWriter, delta_of
from penstock.frontend.openai.errors import HttpError
from penstock.frontend.openai.format import Format, Head, Shown
from penstock.frontend.openai.requests import SamplingFields
from penstock.frontend.service import Service
from penstock.frontend.text.requests import PreparedRequest, prepare_request
from penstock.frontend.text.stream import TextDelta, TextFold
from penstock.observability.log import warn_once
from penstock.types.request import SamplingParams

MAX_CHUNK_TOKENS = 16
"""Most tokens that are merged into one chunk for a client that is behind."""

_DELTA_BYTES = 96
"""Memory for a delta that is kept, besides its tokens, counted from above."""
_TOKEN_BYTES = 48
_SCORE_BYTES = 192
"""The same for a token with its log probability."""
_EVENT_BYTES = 160

_LOG = logging.getLogger(__name__)


def make_head(exchange: Exchange, prefix: str, model: str) -> Head:
    """The identity of one answer, ``prefix`` and 24 hexadecimal digits; also its x-request-id."""
    exchange.request_id = prefix + os.urandom(12).hex()
    return Head(id=exchange.request_id, created=int(time.time()), model=model)


def make_shown(request: SamplingFields, *, logprobs: bool, max_top: int | None) -> Shown:
    options = request.stream_options
    return Shown(
        logprobs=logprobs,
        max_top=max_top,
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
        token_ids=bool(request.return_token_ids),
        prompt_logprobs=request.prompt_logprobs is not None,
        usage_in_chunks=options is not None and bool(options.include_usage),
    )


def prepare(
    service: Service,
    request: SamplingFields,
    prompt_ids: Sequence[int],
    sampling: SamplingParams,
    *,
    arrival: float,
    param: str,
    reading: Reading | None = None,
) -> PreparedRequest:
    """One prompt, already as token ids, checked against the model and fanned out. Raises InvalidRequestError."""
    limits = [limit for limit in (service.server.request_timeout, request.request_timeout) if limit is not None]
    info = service.client.info
    prepared = prepare_request(
        service.assets,
        prompt_ids,
        sampling,
        new_request_id=service.client.new_request_id,
        max_model_len=info.max_model_len,
        vocab_size=info.model.vocab_size,
        arrival_time=arrival,
        deadline=arrival + min(limits) if limits else None,
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        param=param,
    )
    return dataclasses.replace(prepared, reading=reading) if reading is not None else prepared


def warn_of_ignored(exchange: Exchange, service: Service, request: SamplingFields) -> None:
    """Tell the client of a field that it gave and that this server's settings make meaningless."""
    if request.priority and service.client.info.settings.get("scheduling_policy") == "fcfs":
        warn(exchange, "priority ignored: the scheduling policy is fcfs, --scheduling-policy priority obeys it")


def warn(exchange: Exchange, warning: str) -> None:
    """Say in the log, once, and in a header of the answer that a field of the request changes nothing."""
    warn_once(_LOG, warning)
    exchange.extra_headers.append(("penstock-warning", warning))


def check_total(num_prompts: int, n: int, max_queue: int) -> None:
    """Refuse a request that could never fit the queue before anything is spent on it."""
    if num_prompts * n > max(max_queue, n):
        raise InvalidRequestError(
            f"{num_prompts} prompts with n {n} are {num_prompts * n} sequences; this server takes at most {max_queue} "
            "at a time (--max-queue). Send fewer prompts per request.",
            param="prompt",
        )


async def write_generation(
    exchange: Exchange, service: Service, prepared: Sequence[PreparedRequest], form: Format, *, stream: bool
) -> None:
    """Run ``prepared`` and answer. A client that leaves ends its sequences in the engine."""
    answer = _StreamedAnswer(exchange, form) if stream else _WholeAnswer(exchange, form)
    generation = Generation(service, prepared, answer)
    answer.generation = generation

    def on_gone() -> None:
        generation.abort()
        answer.end()

    if exchange.gone:
        return
    exchange.on_gone = on_gone
    try:
        generation.start()
        await answer.ended
        await answer.close()
    finally:
        exchange.on_gone = exchange.on_room = None
        generation.close()


class _Answer:
    """What both kinds of answers share: they end once, by success, by a problem or because nobody listens."""

    generation: Generation

    def __init__(self, exchange: Exchange, form: Format) -> None:
        self._exchange = exchange
        self._form = form
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _hold(self, size: int) -> bool:
        """Count what is kept of an answer; False, and the request has failed, when the server keeps too much."""
        if self._exchange.hold(size):
            return True
        self.generation.fail(self._exchange.too_much_held())
        return False

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def plain_writer(self, index: int) -> PlainWriter | None:
        return None

    def on_problem(self, _: HttpError) -> None:
        self.end()

    def on_finished(self) -> None:
        self.end()

    def on_shut_down(self) -> None:
        """A whole answer waits for nothing but the engine."""


class _WholeAnswer(_Answer):
    """One JSON answer: a fold of the deltas per choice."""

    def __init__(self, exchange: Exchange, form: Format) -> None:
        super().__init__(exchange, form)
        self._folds: dict[int, TextFold] = {}

    def deliver(self, index: int, delta: TextDelta) -> None:
        if self._hold(size_of(delta)):
            self._folds.setdefault(index, TextFold()).add(delta)

    async def close(self) -> None:
        generation = self.generation
        if generation.problem is not None:
            raise generation.problem
        if generation.silent:
            return
        deltas = {index: delta_of(fold) for index, fold in self._folds.items()}
        await self._exchange.answer(200, self._form.answer(deltas, generation.usage()))


@dataclasses.dataclass(slots=True)
class _Kept:
    """One chunk that waits for the client. ``size`` is what it takes."""

    index: int
    fold: TextFold = dataclasses.field(default_factory=TextFold)
    size: int = 0


class _StreamedAnswer(_Answer):
    """Server-sent events. News that arrive while the client is behind are folded, ``MAX_CHUNK_TOKENS`` to a chunk, and
    sent when it has read. When more than the server's limit waits so, it is thrown away, and an error ends the stream.
    """

    def __init__(self, exchange: Exchange, form: Format) -> None:
        super().__init__(exchange, form)
        exchange.on_room = self._write_pending
        self._pending: list[_Kept] = []
        self._kept_bytes = 0

    def deliver(self, index: int, delta: TextDelta) -> None:
        if self._pending or self._exchange.congested:
            self._keep(index, delta)
        else:
            self._write(self._form.chunk(index, delta))

    def plain_writer(self, index: int) -> PlainWriter | None:
        frame = self._form.plain_frame(index) if self._exchange.started else None
        return _PlainEvents(self._exchange, *frame) if frame is not None else None

    def _keep(self, index: int, delta: TextDelta) -> None:
        size = size_of(delta)
        limit = self.generation.service.server.max_unread_bytes
        if self._kept_bytes + size > limit:
            self._throw_away()
            self.generation.fail(
                HttpError(
                    408,
                    f"The client did not read fast enough: {limit} bytes of this answer waited for it "
                    "(--max-unread-bytes), and were thrown away. Read faster, or ask for less.",
                    code="reader_too_slow",
                )
            )
            return
        if not self._exchange.hold(size):
            self._throw_away()
            self.generation.fail(self._exchange.too_much_held())
            return
        self._kept_bytes += size
        last = next((kept for kept in reversed(self._pending) if kept.index == index), None)
        if last is None or len(last.fold.token_ids) + len(delta.token_ids) > MAX_CHUNK_TOKENS:
            last = _Kept(index)
            self._pending.append(last)
        last.fold.add(delta)
        last.size += size

    def _throw_away(self) -> None:
        self._release(self._kept_bytes)
        self._pending.clear()

    def _release(self, size: int) -> None:
        self._kept_bytes -= size
        self._exchange.release(size)

    def _write_pending(self) -> None:
        """What was held, for as long as the client has room."""
        pending = self._pending
        written = 0
        for kept in pending:
            if self._exchange.congested:
                break
            self._write(self._form.chunk(kept.index, delta_of(kept.fold)))
            self._release(kept.size)
            written += 1
        del pending[:written]
        if not pending and self._after_pending is not None:
            self._after_pending()

    def _write(self, piece: bytes) -> None:
        if not piece:  # an empty piece would end the body
            return
        if not self._exchange.started:
            self._exchange.start_stream()
        self._exchange.write_piece(piece)

    def on_problem(self, problem: HttpError) -> None:
        if self.ended.done():  # all is written
            return
        if self._exchange.started:
            self._finish(lambda: self._form.error_events(problem))
        else:
            self.end()

    def on_finished(self) -> None:
        generation = self.generation
        if generation.silent:
            if self._after_pending is None:  # else the error follows what the client has not read yet
                self.end()
            return
        usage = generation.usage()
        self._finish(lambda: self._form.last_events(usage))

    def on_shut_down(self) -> None:
        """What was not read is thrown away, so that the error may still reach the client."""
        if not self.ended.done():
            self._throw_away()
            if self._after_pending is not None:
                self._after_pending()

    _after_pending: Callable[[], None] | None = None

    def _finish(self, make_last: Callable[[], bytes]) -> None:
        """The last piece, made after all that is held."""

        def finish() -> None:
            self._after_pending = None
            try:
                self._write(make_last())
                self._exchange.end_stream()
            except Exception:  # noqa: BLE001 - the boundary of one request: the stream is left incomplete
                _LOG.exception("the end of a stream could not be written")
            self.end()

        if self._pending:
            self._after_pending = finish
        else:
            finish()

    async def close(self) -> None:
        problem = self.generation.problem
        if problem is not None and not self._exchange.started:
            raise problem


def size_of(delta: TextDelta) -> int:
    """Bytes of memory that a delta takes, counted from above."""
    size = _DELTA_BYTES + _TOKEN_BYTES * len(delta.token_ids) + 4 * len(delta.text)
    if delta.events:
        size += sum(_EVENT_BYTES + 4 * len(getattr(event, "text", "")) for event in delta.events)
    if delta.scores or delta.prompt_scores:
        size += _SCORE_BYTES * sum(1 + len(one.top) for one in (*delta.scores, *delta.prompt_scores))
    return size


class _PlainEvents:
    """The short way of one choice: text between two fixed pieces."""

    __slots__ = ("_after", "_before", "_exchange")

    def __init__(self, exchange: Exchange, before: bytes, after: bytes) -> None:
        self._exchange = exchange
        self._before = before
        self._after = after

    @property
    def congested(self) -> bool:
        return self._exchange.congested

    def write(self, text: bytes) -> None:
        self._exchange.write_event(self._before, text, self._after)
