"""HTTP/1.1 on one connection: the parser's callbacks, limits on what may precede a body, keep-alive and pipelining.

Requests of a connection are answered one after another. What is written goes straight to the transport, which
collects the writes of one turn of the event loop into one system call. Knows no route.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import cast

import httptools

from penstock.frontend.exchange import CONGESTED_BYTES, Exchange, answer_head, header_lines
from penstock.frontend.openai.errors import HttpError

_LOG = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers together. The parser itself would collect without limit."""
HEAD_TIMEOUT_S = 20.0
"""Seconds from the first byte of a request head (or from the connection) to its end."""
KEEP_ALIVE_S = 65.0
"""Seconds that a connection may lie idle between two requests: longer than the minute that proxies like."""
MAX_PIPELINED = 32
"""Requests that wait behind the one being answered; more, and the connection is not read until one has ended."""

STARTS_PER_TURN = 64


@lru_cache(maxsize=256)
def _header_name(name: bytes) -> str:
    return name.decode("latin-1").lower()


Handler = Callable[[Exchange], Awaitable[None]]
"""Answers one request. Must not raise, and has answered when it returns, unless the client has gone."""


class Starter:
    """Starts the answers to requests, ``STARTS_PER_TURN`` in one turn of the event loop.

    A burst of requests would otherwise hold up the streams that are open, and its own first ones, until its last one
    is under way. Also knows which connections are open.
    """

    def __init__(
        self, handler: Handler, loop: asyncio.AbstractEventLoop, on_turn: Callable[[int], None] = lambda _: None
    ) -> None:
        """``on_turn`` is told how many requests begin together, before they do."""
        self.loop = loop
        self._on_turn = on_turn
        self.connections: set[HttpConnection] = set()
        self._handler = handler
        self._queue: deque[tuple[HttpConnection, Exchange]] = deque()
        self._posted = False

    def start(self, connection: HttpConnection, exchange: Exchange) -> None:
        self._queue.append((connection, exchange))
        if not self._posted:
            self._posted = True
            self.loop.call_soon(self._run)

    def _run(self) -> None:
        queue = self._queue
        number = min(STARTS_PER_TURN, len(queue))
        self._on_turn(number)
        for _ in range(number):
            connection, exchange = queue.popleft()
            if not exchange.gone:
                connection.run(self._handler, exchange)
        self._posted = bool(queue)
        if queue:
            self.loop.call_soon(self._run)


class HttpConnection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter
        self._connections = starter.connections
        self._loop = starter.loop
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._in_head = True  # between two requests, or in the midst of a head
        self._incoming: Exchange | None = None  # the one whose body is being received
        self._current: Exchange | None = None  # the one being answered
        self._waiting: deque[Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._expires = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._reading = True
        self.paused = False  # the transport has more than it should hold
        self.closing = False  # no request is taken after the current one
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)

    # -- the transport's calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=CONGESTED_BYTES)
        self._connections.add(self)
        self._expect_head(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()
        for exchange in (self._incoming, self._current):
            if exchange is not None:
                exchange.disconnected()
        self._incoming = None

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._current is not None:
            self._current.has_room()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.closing = True  # answered as an ordinary request; what follows it is of no protocol known here
            return
        except httptools.HttpParserError:
            self._refuse(HttpError(400, "This is not a valid HTTP request.", code="invalid_http"))
            return
        # A head that has ended is no longer counted: what came with it is body, or the next head.
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()

    # -- the parser's calls --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._head_bytes = 0
        self._in_head = True
        self._expect_head(HEAD_TIMEOUT_S)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        self._headers[_header_name(name)] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._expires = 0.0
        if self._head_bytes + len(self._url) > MAX_HEAD_BYTES:
            self._refuse_head()
        if self._refused or self.closing:
            return
        parser = self._parser
        modern = parser.get_http_version() == "1.1"
        exchange = Exchange(
            self,
            method=parser.get_method().decode("latin-1"),
            target=self._url,
            headers=self._headers,
            keep_alive=modern and parser.should_keep_alive(),
            chunked=modern,
        )
        self._incoming = exchange
        if self._current is None:
            self._start(exchange)
            return
        self._waiting.append(exchange)
        if len(self._waiting) >= MAX_PIPELINED:
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        if self._incoming is not None:
            self._incoming.feed(body)

    def on_message_complete(self) -> None:
        incoming, self._incoming = self._incoming, None
        self._in_head = True
        self._head_bytes = 0
        if incoming is not None:
            incoming.feed_end()

    # -- requests ------------------------------------------------------------------------------------------------

    def _start(self, exchange: Exchange) -> None:
        self._current = exchange
        self._starter.start(self, exchange)

    def run(self, handler: Handler, exchange: Exchange) -> None:
        """Begin to answer the current request."""
        self._task = self._loop.create_task(self._answer(handler, exchange))

    async def _answer(self, handler: Handler, exchange: Exchange) -> None:
        try:
            await handler(exchange)
        finally:
            self._current = None
            self._task = None
            self._after(exchange)

    def _after(self, exchange: Exchange) -> None:
        """One request is over: the next one, or the end of the connection."""
        if not exchange.complete or not exchange.keep_alive or (self.closing and not self._waiting):
            self.transport.close()
            return
        if self._incoming is exchange:
            exchange.discard_rest()
        self.resume_reading()
        if self._waiting:
            self._start(self._waiting.popleft())
        elif self._incoming is None:
            self._expect_head(KEEP_ALIVE_S)

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    def finish(self) -> None:
        """The server ends: close at once when idle, else after the answer that is being written."""
        self.closing = True
        if self._current is None:
            self.transport.close()
        else:
            self._current.keep_alive = False

    # -- limits --------------------------------------------------------------------------------------------------

    def _expect_head(self, seconds: float) -> None:
        """Close the connection unless a head has ended by then. One timer serves all heads of a connection."""
        self._expires = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._on_timer)
        elif seconds < KEEP_ALIVE_S and self._timer.when() > self._expires:
            self._timer.cancel()
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._expires:
            return
        rest = self._expires - self._loop.time()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._on_timer)
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        self._refuse(HttpError(431, f"Request line and headers exceed {MAX_HEAD_BYTES} bytes."))

    def _refuse(self, problem: HttpError) -> None:
        """Answer what could not be read, and close: nobody knows where the next request would begin."""
        self._refused = True
        if self._current is not None:  # its answer comes first, and is the last one
            self._current.keep_alive = False
            self._waiting.clear()
            return
        body = problem.encode()
        headers = (("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close"))
        self.transport.write(answer_head(problem.status, header_lines(headers)) + body)
        self.transport.close()
