"""The frontend's end: an engine client over sockets, for one asyncio event loop.

Knows no process: whoever started the engine says so with ``engine_exited`` and is asked to end it by ``on_close``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import zmq

from penstock.errors import (
    ConfigError,
    EngineDeadError,
    ModelSourceError,
    NoBackendError,
    PenstockError,
    UnsupportedModelError,
    UserError,
)
from penstock.ipc import codec
from penstock.ipc.channel import BACKLOG_MESSAGES, Writer, make_reader
from penstock.ipc.endpoints import PrivateEndpoints, to_client, to_engine
from penstock.ipc.open_requests import News, OpenRequests
from penstock.types.control import ControlCommand, ControlReply
from penstock.types.facts import EngineInfo
from penstock.types.output import EngineStats, FailureKind, OutputSink, TokenUpdate
from penstock.types.request import GenerateRequest

_READS_PER_TURN = 64  # then the event loop gets a turn, however fast the engine talks
MERGED_TOKENS = 16
"""Most tokens of one request that are handed over in one call. A loop that keeps up with the engine finds one message
at a time and hands over its tokens as they come; one that is behind finds several, and catches up by merging them."""
_SENT_TOGETHER = 4
_LAST_WORDS_S = 0.1  # for bytes that a dead process has written and nobody has read yet
_USER_ERRORS: dict[str, type[UserError]] = {
    error.__name__: error for error in (ConfigError, ModelSourceError, UnsupportedModelError, UserError)
}

log = logging.getLogger(__name__)


class IpcClient:
    """Implements ``frontend.client.EngineClient``. Make it inside the loop that will use it, tell the engine process
    ``address``, then await ``start``.

    The engine counts as dead when it says so, when ``engine_exited`` is called, or when nothing has arrived for
    ``silence_limit_s`` (its heartbeat comes every second, whatever the step loop does). ``receive_limit``: most
    messages that may wait here; the engine waits when there is no room.

    An engine may have ``num_clients`` of them; this one is number ``index``, which shows in its request ids. The first
    one orders the engine and ends it, the others have ``endpoints`` that the order names.
    """

    def __init__(
        self,
        *,
        silence_limit_s: float = 60.0,
        receive_limit: int = BACKLOG_MESSAGES,
        endpoints: PrivateEndpoints | None = None,
        index: int = 0,
        num_clients: int = 1,
        on_progress: Callable[[str], None] | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._endpoints = endpoints or PrivateEndpoints()
        self._is_first = index == 0
        self._num_clients = num_clients
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reader = make_reader(self._context, to_client(self.address), bind=True, limit=receive_limit)
        self._writer = Writer(self._context, to_engine(self.address), bind=True)
        self._requests = OpenRequests()
        self._request_ids = itertools.count(index + 1, num_clients)
        self._call_ids = itertools.count(index + 1, num_clients)
        self._calls: dict[int, asyncio.Future[ControlReply]] = {}
        self._hello: asyncio.Future[None] = self._loop.create_future()
        self._ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        self._stats = EngineStats()
        self._engine_health = ""
        self._last_words = ""  # of an engine that says it is dead: no later heartbeat takes them back
        self._last_heard = time.monotonic()
        self._silence_limit_s = silence_limit_s
        self._on_progress = on_progress or (lambda _text: None)
        self._on_close = on_close
        self._closed = False
        self._turn_posted = False
        self._unsent: list[GenerateRequest] = []
        self._on_delivery: Callable[[float, int], None] | None = None
        self._delivered: list[tuple[float, int]] = []  # of this turn: when each step was made, and its tokens
        self._silence_timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._reader.fileno(), self._on_readable)
        self._loop.call_soon(self._on_readable)  # the descriptor tells of changes only: read once without being told

    @property
    def address(self) -> str:
        return self._endpoints.address

    async def attach(self) -> EngineInfo:
        """Wait until the engine, which another client orders, is ready. Raises as ``start``."""
        info = await asyncio.shield(self._ready)
        while not self._writer.has_room() and not self._requests.dead:  # its other connection may come later
            await asyncio.sleep(0.005)
        self._watch_silence()
        return info

    async def start(self, order: bytes) -> EngineInfo:
        """Shake hands, hand over the order, wait until the engine is ready.

        Raises the error that the engine reports, or EngineDeadError when it ends without a word.
        """
        await asyncio.shield(self._hello)  # a caller that gives up must not cancel what others look at
        message = codec.encode(codec.Start(codec.PROTOCOL_VERSION, order))
        while not self._writer.send(message):  # its second connection may come a moment after its Hello
            if self._requests.dead:
                break
            await asyncio.sleep(0.005)
        info = await asyncio.shield(self._ready)
        self._watch_silence()
        return info

    @property
    def ready(self) -> bool:
        """Whether the engine has become ready, dead or alive now."""
        return self._ready.done() and self._ready.exception() is None

    @property
    def info(self) -> EngineInfo:
        if not self._ready.done():
            raise EngineDeadError("The engine is not ready yet.")
        return self._ready.result()

    def observe_delivery(self, observe: Callable[[float, int], None]) -> None:
        """Call ``observe`` once per step with what lies between the engine's handing it over and the system's having
        taken what the sinks wrote, in seconds, and with the number of its tokens."""
        self._on_delivery = observe

    def client_gone(self, index: int) -> None:
        """Client number ``index`` of the same engine is no more: its requests are to end. For the first client."""
        self._send(codec.encode(codec.Gone(index)))

    def new_request_id(self) -> int:
        return next(self._request_ids)

    def claim(self, request_ids: Sequence[int]) -> None:
        """Only an engine of several clients keeps the limit on what is open, and may refuse."""
        if self._num_clients > 1:
            self._send_requests()
            self._send(codec.encode(codec.Claim(tuple(request_ids))))

    def submit(self, request: GenerateRequest, sink: OutputSink) -> None:
        """Requests of one turn of the loop travel together, a few at a time, so that a burst of them wakes the engine's
        reader less often, and the first ones do not wait for the last."""
        self._requests.add(request.request_id, sink)
        if not self._unsent:
            self._loop.call_soon(self._send_requests)
        self._unsent.append(request)
        if len(self._unsent) >= _SENT_TOGETHER:
            self._send_requests()

    def _send_requests(self) -> None:
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            self._send(codec.encode(codec.Submit(tuple(unsent))))

    def abort(self, request_ids: Sequence[int]) -> None:
        if not self._requests.dead:
            self._send_requests()
            self._send(codec.encode(codec.Abort(tuple(request_ids))))

    def stats(self) -> EngineStats:
        return self._stats

    def health(self) -> str:
        trouble = self._requests.dead or self._last_words or self._engine_health
        if trouble:
            return trouble
        if not self._ready.done():
            return "The engine is starting."
        silence = time.monotonic() - self._last_heard
        return f"The engine has been silent for {silence:.0f} seconds." if silence > self._silence_limit_s / 2 else ""

    async def control(self, command: ControlCommand) -> ControlReply:
        """Raises EngineDeadError when the engine is gone or goes before it answers."""
        if self._requests.dead:
            raise EngineDeadError(self._requests.dead)
        call_id = next(self._call_ids)
        call: asyncio.Future[ControlReply] = self._loop.create_future()
        self._calls[call_id] = call
        self._send_requests()
        self._send(codec.encode(codec.make_control(call_id, command)))
        try:
            return await call
        finally:
            del self._calls[call_id]

    async def close(self) -> None:
        """Ask the engine to stop, wait until whoever started it has seen it end, release the sockets. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._send_requests()
        if self._is_first:
            self._writer.send(codec.encode(codec.Shutdown()))
        if self._on_close is not None:
            await self._on_close()
        self._read(limit=None)
        self._die("The engine was stopped.")
        self._loop.remove_reader(self._reader.fileno())
        self._reader.close(linger=0)
        # A moment for the Shutdown message, when there is no process to wait for.
        self._writer.close(linger_ms=0 if self._on_close else 200)
        self._context.term()
        self._endpoints.remove()

    def engine_exited(self, sentence: str) -> None:
        """The process is gone. What it wrote before is still delivered; then everything open ends with an error."""
        self._loop.call_later(_LAST_WORDS_S, self._bury, sentence)

    def _bury(self, sentence: str) -> None:
        self._read(limit=None)
        self._die(sentence)

    def _send(self, message: bytes) -> None:
        if not self._writer.send(message):
            self._loop.call_soon(self._die, "The connection to the engine is lost.")

    def _on_readable(self) -> None:
        # One turn is posted at a time, whoever tells of something to read: with more, a busy engine would take all of
        # the loop's time.
        if not self._turn_posted and self._read(limit=_READS_PER_TURN):
            self._turn_posted = True
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn_posted = False
        self._on_readable()

    def _read(self, limit: int | None) -> bool:
        """Handle what has arrived; True when the limit was reached and there may be more. A limited call also ends
        when it has handed over as many tokens of one request as are merged."""
        if self._reader.closed:
            return False
        news: News | None = None
        num_merged = 0
        more = False
        for number in itertools.count():
            if limit is not None and (number >= limit or num_merged >= MERGED_TOKENS):
                more = True
                break
            try:
                data = self._reader.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._last_heard = time.monotonic()
            if not self._hello.done():
                self._greet(data)
                continue
            message = self._understand(data)
            if isinstance(message, codec.Batch):
                length = _longest_update(message)
                if news is not None and num_merged + length > MERGED_TOKENS:
                    self._requests.deliver_news(news)
                    news, num_merged = None, 0
                news = news or News()
                num_merged += length
                self._collect(message, news)
            elif message is not None:
                if news is not None:  # what follows may be an end that must not overtake them
                    self._requests.deliver_news(news)
                    news, num_merged = None, 0
                self._receive(message)
        if news is not None:
            self._requests.deliver_news(news)
        if self._delivered:
            # The next callbacks run after the loop has handed what was written to the system.
            self._loop.call_soon(self._tell_delivery, self._delivered)
            self._delivered = []
        return more

    def _tell_delivery(self, steps: list[tuple[float, int]]) -> None:
        if self._on_delivery is not None:
            now = time.monotonic()
            for made, num_tokens in steps:
                self._on_delivery(now - made, num_tokens)

    def _understand(self, data: bytes) -> codec.ToClient | None:
        try:
            return codec.decode_for_client(data)
        except codec.MessageError as error:
            log.error("a message of the engine was not understood and is lost: %s", error)
            return None

    def _collect(self, message: codec.Batch, news: News) -> None:
        if message.stats is not None:
            self._stats = message.stats
        if message.updates:
            news.add_updates(message.updates)
        if message.request_ids:
            try:
                news.add_columns(*codec.read_columns(message))
            except codec.MessageError as error:
                log.error("tokens of the engine were not understood and are lost: %s", error)
        if self._on_delivery is not None and message.made:
            num_tokens = len(message.request_ids) // codec.ID_BYTES + sum(
                len(each.token_ids) for each in message.updates
            )
            if num_tokens:
                self._delivered.append((message.made, num_tokens))
        for end in message.terminals:
            if end.failure is FailureKind.ENGINE_DEAD:
                self._last_words = end.message
        news.terminals.extend(message.terminals)

    def _greet(self, data: bytes) -> None:
        version = codec.handshake_version(data)
        if version == codec.PROTOCOL_VERSION:
            self._hello.set_result(None)
            return
        self._die(
            f"The engine process answered with version {version} of the protocol instead of {codec.PROTOCOL_VERSION}: "
            "two installations of Penstock are mixed."
        )

    def _receive(self, message: codec.ToClient) -> None:
        match message:
            case codec.Heartbeat(health=health):
                self._engine_health = health
            case codec.Reply(call_id=call_id, reply=reply):
                call = self._calls.get(call_id)
                if call is not None and not call.done():
                    call.set_result(reply)
            case codec.Progress(text=text):
                self._on_progress(text)
            case codec.Ready(info=info):
                if not self._ready.done():
                    self._ready.set_result(info)
            case codec.Failed(message=text):
                self._die(text, _error_of(message))
            case codec.Hello():
                log.warning("a second Hello of the engine was ignored")

    def _die(self, sentence: str, error: PenstockError | None = None) -> None:
        error = error or EngineDeadError(sentence)
        waiting: list[asyncio.Future[Any]] = [self._hello, self._ready, *self._calls.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: nobody may be waiting
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        self._stats = self._stats.at_rest()
        self._requests.fail_all(sentence)

    def _watch_silence(self) -> None:
        if self._closed or self._requests.dead:
            return
        self._on_readable()  # a loop that was stalled itself has not heard what lies in the socket
        silence = time.monotonic() - self._last_heard
        if silence > self._silence_limit_s:
            self._die(f"The engine has been silent for {silence:.0f} seconds and counts as dead.")
            return
        self._silence_timer = self._loop.call_later(min(1.0, self._silence_limit_s / 4), self._watch_silence)


def _longest_update(message: codec.Batch) -> int:
    """An upper bound of the tokens that one request has in a batch."""
    updates = message.updates
    return max(1, sum(len(update.token_ids) for update in updates) if len(updates) < 2 else _most_tokens(updates))


def _most_tokens(updates: Sequence[TokenUpdate]) -> int:
    totals: dict[int, int] = {}
    for update in updates:
        totals[update.request_id] = totals.get(update.request_id, 0) + len(update.token_ids)
    return max(totals.values())


def _error_of(failed: codec.Failed) -> PenstockError:
    if failed.decision is not None:
        return NoBackendError(failed.message, decision=failed.decision)
    return _USER_ERRORS.get(failed.kind, EngineDeadError)(failed.message)
