"""What the two generation routes share: run a Generation and write it as a stream or as one answer."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import Sequence

from penstock.errors import InvalidRequestError
from penstock.frontend.dialects.contract import Reading
from penstock.frontend.exchange import EventStream, Exchange
from penstock.frontend.generation import Generation, delta_of
from penstock.frontend.openai.errors import HttpError
from penstock.frontend.openai.format import DONE, Format, Head, Shown
from penstock.frontend.openai.requests import SamplingFields
from penstock.frontend.service import Service
from penstock.frontend.text.requests import PreparedRequest, prepare_request
from penstock.frontend.text.stream import TextDelta, TextFold
from penstock.observability.log import warn_once
from penstock.types.request import SamplingParams

_LOG = logging.getLogger(__name__)


def make_head(exchange: Exchange, prefix: str, model: str) -> Head:
    """The identity of one answer; also its x-request-id."""
    exchange.request_id = f"{prefix}-{secrets.token_hex(12)}"
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
    run = _StreamedAnswer(form) if stream else _WholeAnswer(form)
    generation = Generation(service, prepared, run.deliver, run.on_problem)
    generation.start()
    watcher = asyncio.create_task(exchange.gone())

    def on_gone(_: asyncio.Task[None]) -> None:
        generation.abort()
        run.on_gone()

    watcher.add_done_callback(on_gone)
    try:
        await run.write(exchange, generation)
    finally:
        watcher.remove_done_callback(on_gone)
        watcher.cancel()
        generation.abort()


class _WholeAnswer:
    """One JSON answer: a fold of the deltas per choice."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self._folds: dict[int, TextFold] = {}
        self._ready = asyncio.Event()

    def deliver(self, index: int, delta: TextDelta) -> None:
        self._folds.setdefault(index, TextFold()).add(delta)

    def on_problem(self, _: HttpError) -> None:
        self._ready.set()

    def on_gone(self) -> None:
        self._ready.set()

    async def write(self, exchange: Exchange, generation: Generation) -> None:
        generation.finished.add_done_callback(lambda _: self._ready.set())
        await self._ready.wait()
        if generation.problem is not None:
            raise generation.problem
        if generation.silent:
            return
        deltas = {index: delta_of(fold) for index, fold in self._folds.items()}
        await exchange.answer(200, self._form.answer(deltas, generation.usage()))


class _StreamedAnswer:
    """Server-sent events. News that arrive while the reader is slow are folded and sent as one chunk later."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self._stream = EventStream()
        self._stream.on_room = self._write_pending
        self._pending: dict[int, TextFold] = {}

    def deliver(self, index: int, delta: TextDelta) -> None:
        if self._stream.congested:
            self._pending.setdefault(index, TextFold()).add(delta)
        else:
            self._stream.write(self._form.chunk(index, delta))

    def _write_pending(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, {}
            for index, fold in pending.items():
                self._stream.write(self._form.chunk(index, delta_of(fold)))

    def on_problem(self, problem: HttpError) -> None:
        if self._stream.has_written:
            self._write_pending()
            self._stream.write(error_event(problem))
        self._stream.close()

    def on_gone(self) -> None:
        self._pending.clear()
        self._stream.close()

    async def write(self, exchange: Exchange, generation: Generation) -> None:
        stream = self._stream
        generation.finished.add_done_callback(lambda _: self._end(generation))
        await stream.opened()
        problem = generation.problem
        if problem is not None and not stream.has_written:
            raise problem
        await exchange.answer_stream(stream)

    def _end(self, generation: Generation) -> None:
        if not generation.silent:
            self._write_pending()
            if self._form.shown.usage_in_chunks:
                self._stream.write(self._form.usage_chunk(generation.usage()))
            self._stream.write(DONE)
        self._stream.close()


def error_event(problem: HttpError) -> bytes:
    """The last event of a stream that failed after it began."""
    return b"data: " + problem.encode() + b"\n\n"
