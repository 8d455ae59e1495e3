"""HTTP/1.1 on one connection: the parser's callbacks, limits on what may precede a body, keep-alive and pipelining.

Requests of a connection are answered one after another. What is written goes straight to the transport, which
collects the writes of one turn of the event loop into one system call. Knows no route.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import cast

import httptools

from penstock.config.sections import ServerConfig
from penstock.frontend.buffers import Buffers, StallWatch
from penstock.frontend.exchange import CONGESTED_BYTES, Exchange, answer_head, header_lines
from penstock.frontend.openai.errors import HttpError

_LOG = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers together; also what may come between two pieces of a body (chunk extensions) or behind it
(trailers). The parser itself would collect without limit."""
HEAD_TIMEOUT_S = 20.0
"""Seconds from the first byte of a request head (or from the connection) to its end."""
KEEP_ALIVE_S = 65.0
"""Seconds that a connection may lie idle between two requests: longer than the minute that proxies like."""
BODY_TIMEOUT_S = 30.0
"""Seconds that may pass without a byte of a body that has begun, and that every body may take."""
BODY_BYTES_PER_S = 16 << 10
"""A body may take a second more for each so many bytes."""
LINGER_S = 2.0
"""Seconds that a client has to read why its request was refused while it is still sending. A connection that is
closed with something unread is reset, and that takes the answer away from the client."""
MAX_PIPELINED = 32
"""Requests that wait behind the one being answered; more, and the connection is not read until one has ended."""

STARTS_PER_TURN = 64
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing discards what is unsent, and resets the connection."""


@lru_cache(maxsize=256)
def _header_name(name: bytes) -> str:
    return name.decode("latin-1").lower()


_DROPPED_ON_DOWNGRADE = frozenset({"connection", "upgrade", "http2-settings"})

Handler = Callable[[Exchange], Awaitable[None]]
"""Answers one request. Must not raise, and has answered when it returns, unless the client has gone."""


class Starter:
    """Starts the answers to requests, ``STARTS_PER_TURN`` in one turn of the event loop.

    A burst of requests would otherwise hold up the streams that are open, and its own first ones, until its last one
    is under way. Also knows which connections are open.
    """

    def __init__(
        self,
        handler: Handler,
        loop: asyncio.AbstractEventLoop,
        server: ServerConfig,
        on_turn: Callable[[int], None] = lambda _: None,
    ) -> None:
        """``on_turn`` is told how many requests begin together, before they do."""
        self.loop = loop
        self.server = server
        self.buffers = Buffers(server.max_buffered_bytes)
        self._on_turn = on_turn
        self.connections: set[HttpConnection] = set()
        self.num_coming = 0  # accepted, and not among the connections yet
        self._handler = handler
        self._queue: deque[tuple[HttpConnection, Exchange]] = deque()
        self._posted = False

    def close_idle(self, count: int) -> int:
        """Close the ``count`` connections that have been without a request for longest; answers how many were."""
        idle = sorted((one for one in self.connections if one.is_idle), key=lambda one: one.idle_since)
        for connection in idle[:count]:
            connection.transport.close()
            self.connections.discard(connection)
        return min(len(idle), count)

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
            if exchange.gone:
                exchange.release()
            else:
                connection.run(self._handler, exchange)
        self._posted = bool(queue)
        if queue:
            self.loop.call_soon(self._run)


class HttpConnection(asyncio.Protocol):
    """One connection of a client. ``make_room`` is asked when it begins: a refusal is all that one too many gets."""

    def __init__(self, starter: Starter, make_room: Callable[[], HttpError | None] = lambda: None) -> None:
        self._starter = starter
        self._connections = starter.connections
        self._loop = starter.loop
        self._make_room = make_room
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[str, str] = {}
        self._num_hosts = 0
        self._head_bytes = 0  # of the head's fields
        self._quiet_bytes = 0  # received since something last came of it: a head, a piece of a body, an end
        self._in_head = True  # between two requests, or in the midst of a head
        self._has_begun = False  # a head has
        self._upgrades = False  # the head asks for another protocol
        self._behind_head = 0  # where it ended then
        self._incoming: Exchange | None = None  # the one whose body is being received
        self._body_bytes = 0  # of it
        self._body_began = 0.0
        self._current: Exchange | None = None  # the one being answered
        self._waiting: deque[Exchange] = deque()
        self._task: asyncio.Task[None] | None = None
        self._expires = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._refused: HttpError | None = None
        self._lingers = False
        self._reading = True
        self._unread: StallWatch | None = None
        self.buffers = starter.buffers
        self.idle_since = starter.loop.time()
        self.paused = False  # the transport has more than it should hold
        self.closing = False  # no request is taken after the current one
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)

    @property
    def is_idle(self) -> bool:
        """No request is being received or answered, and nothing waits to be read. A head may have begun."""
        return self._current is None and self._incoming is None and not self.paused and self._refused is None

    @property
    def is_answering(self) -> bool:
        """A request that has been received is being answered, or the client has not read all of an answer."""
        receives = self._current is self._incoming
        return (self._current is not None and not receives) or self.transport.get_write_buffer_size() > 0

    # -- the transport's calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=CONGESTED_BYTES)
        self._starter.num_coming -= 1
        refusal = self._make_room()
        self._connections.add(self)
        self._expect(HEAD_TIMEOUT_S)
        if refusal is not None:
            self._refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._unread is not None:
            self._unread.stop()
        self._leave()

    def eof_received(self) -> None:
        """Whoever ends its side has left: a client that has gone and one that only stops sending look the same."""
        self._leave()
        self._watch_unread()  # the transport closes when all is sent

    def _leave(self) -> None:
        for exchange in self._waiting:
            exchange.release()
        self._waiting.clear()
        incoming, self._incoming = self._incoming, None
        if self._current is not None:
            self._current.disconnected()
        if incoming is not None and incoming is not self._current:
            incoming.release()  # it waited, or was answered before it had ended

    def pause_writing(self) -> None:
        self.paused = True
        self._watch_unread()

    def resume_writing(self) -> None:
        self.paused = False
        if self._unread is not None and not self.transport.is_closing():
            self._unread.stop()
        if self._current is not None:
            self._current.has_room()
        elif self._waiting:
            self._start(self._waiting.popleft())

    def data_received(self, data: bytes) -> None:
        if self._refused is not None or self._lingers:
            return
        self._quiet_bytes += len(data)
        rest = memoryview(data)
        try:
            while not self._feed(rest):
                rest = rest[self._behind_head :]
                if not self._stay():
                    return
        except httptools.HttpParserError as error:
            self._refuse(HttpError(400, f"This is not a valid HTTP/1.1 request: {error}.", code="invalid_http"))
            return
        if self._quiet_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def _feed(self, data: memoryview) -> bool:
        """False when the parser has stopped behind the head of a request for another protocol."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._behind_head = upgrade.args[0]
            return False
        return True

    # -- the parser's calls --------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}
        self._num_hosts = 0
        self._head_bytes = 0
        self._in_head = True
        self._has_begun = True
        self._expect(HEAD_TIMEOUT_S)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # a trailer: nobody asks for one, and it must not pass for a header
            return
        self._head_bytes += len(name) + len(value)
        text = _header_name(name)
        if text == "host":
            self._num_hosts += 1
        self._headers[text] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = self._has_begun = False
        self._expires = 0.0
        self._quiet_bytes = 0
        if self._head_bytes + len(self._url) > MAX_HEAD_BYTES:
            self._refuse_head()
        parser = self._parser
        modern = parser.get_http_version() == "1.1"
        if self._num_hosts != 1 and (modern or self._num_hosts):
            self._refuse(HttpError(400, "Send exactly one Host header: HTTP/1.1 asks for it.", code="invalid_http"))
        if self._refused is not None or self.closing:
            return
        self._upgrades = parser.should_upgrade() and parser.get_method() != b"CONNECT"
        if self._upgrades:
            return
        exchange = Exchange(
            self,
            method=parser.get_method().decode("latin-1"),
            target=self._url,
            headers=self._headers,
            keep_alive=modern and parser.should_keep_alive(),
            chunked=modern,
        )
        self._incoming = exchange
        self._body_bytes = 0
        self._expect_body()
        if self._current is None and not self.paused:
            self._start(exchange)
            return
        self._waiting.append(exchange)
        if len(self._waiting) >= MAX_PIPELINED:
            self.pause_reading()

    def on_body(self, body: bytes) -> None:
        self._quiet_bytes = 0
        if self._incoming is not None:
            self._body_bytes += len(body)
            now = self._loop.time()
            slow = self._body_began + BODY_TIMEOUT_S + self._body_bytes / BODY_BYTES_PER_S
            self._expires = min(now + BODY_TIMEOUT_S, slow)
            self._incoming.feed(body)

    def on_message_complete(self) -> None:
        incoming, self._incoming = self._incoming, None
        self._in_head = True
        self._expires = 0.0
        self._head_bytes = self._quiet_bytes = 0
        if incoming is None:
            return
        incoming.feed_end()
        if self._current is None and not self._waiting:  # it was answered before it had ended
            self._expect(KEEP_ALIVE_S)

    def _stay(self) -> bool:
        """There is no other protocol here: the same head is read again without the question, because some clients put
        it beside a body. False for CONNECT: what follows that is of no protocol known here."""
        if not self._upgrades:
            self.closing = True
            return False
        lines = [f"{name}: {value}\r\n" for name, value in self._headers.items() if name not in _DROPPED_ON_DOWNGRADE]
        if "close" in self._headers.get("connection", "").lower():
            lines.append("connection: close\r\n")
        method = self._parser.get_method()
        self._parser = httptools.HttpRequestParser(self)
        head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, self._url, "".join(lines).encode("latin-1"))
        return self._feed(memoryview(head))

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
            exchange.release()
            self._after(exchange)

    def _after(self, exchange: Exchange) -> None:
        """One request is over: the next one, or the end of the connection."""
        if not exchange.complete:
            self._close()
            return
        if not exchange.keep_alive or (self.closing and not self._waiting):
            self._close_gently(is_sending=self._incoming is not None or self._refused is not None)
            return
        if self._refused is not None and not self._waiting:
            self._answer_refusal()
            return
        if self._incoming is exchange:
            exchange.discard_rest()
        self.resume_reading()
        if self._waiting:
            if not self.paused:  # a client that asks and does not read is not answered further
                self._start(self._waiting.popleft())
        elif self._incoming is None:
            self.idle_since = self._loop.time()
            self._expect(KEEP_ALIVE_S)

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            if self._incoming is not None:
                self._expect_body()
            self.transport.resume_reading()

    def finish(self) -> None:
        """The server ends: close at once when idle, else after the answer that is being written."""
        self.closing = True
        if self._current is None:
            self._close()
        else:
            self._current.keep_alive = False

    # -- ends ----------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Close when all is sent; a client that does not read is not waited for without end."""
        self.transport.close()
        self._watch_unread()

    def _close_gently(self, *, is_sending: bool) -> None:
        """Close behind the last answer. To a client that is still sending, its end comes first: see LINGER_S."""
        if not is_sending or self._lingers or self.transport.is_closing() or not self.transport.can_write_eof():
            if not self._lingers:
                self._close()
            return
        self._lingers = True
        self._incoming = None
        self.transport.write_eof()
        self.resume_reading()
        self._expect(LINGER_S)

    def _watch_unread(self) -> None:
        if self._unread is None:
            seconds = self._starter.server.stall_timeout
            self._unread = StallWatch(self.transport, self._loop, self.buffers, seconds, self._on_stalled)
        if self.transport.get_write_buffer_size():
            self._unread.start()

    def _on_stalled(self) -> None:
        _LOG.info("a client has read nothing for %g s; its connection is reset", self._starter.server.stall_timeout)
        # Closed without a reset, the kernel would keep megabytes of the answer for as long as the client is there.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    # -- limits --------------------------------------------------------------------------------------------------

    def _expect(self, seconds: float) -> None:
        """Something has to come within so many seconds. One timer serves all such times of a connection."""
        self._expires = self._loop.time() + seconds
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._on_timer)
        elif seconds < KEEP_ALIVE_S and self._timer.when() > self._expires:
            self._timer.cancel()
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _expect_body(self) -> None:
        self._body_began = self._loop.time() - self._body_bytes / BODY_BYTES_PER_S
        self._expect(BODY_TIMEOUT_S)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._expires:
            return
        rest = self._expires - self._loop.time()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._on_timer)
        elif not self._reading:  # what does not come has not been asked for
            self._expect(BODY_TIMEOUT_S)
        else:
            self._too_late()

    def _too_late(self) -> None:
        if self._refused is not None or not (self._incoming is not None or self._has_begun):
            self._close()
            return
        what, seconds = ("body", BODY_TIMEOUT_S) if self._incoming is not None else ("head", HEAD_TIMEOUT_S)
        self._refuse(
            HttpError(
                408,
                f"The {what} of the request did not come in time: send the head within {HEAD_TIMEOUT_S:g} s, and the "
                f"body without pauses of {seconds:g} s, at {BODY_BYTES_PER_S >> 10} KiB a second or more.",
                code="request_timeout",
            )
        )

    def _refuse_head(self) -> None:
        self._refuse(
            HttpError(
                431,
                f"The request line and the headers exceed {MAX_HEAD_BYTES} bytes together, or a chunk extension or the "
                "trailers do. Send fewer or shorter ones.",
                code="head_too_large",
            )
        )

    def _refuse(self, problem: HttpError) -> None:
        """Answer what could not be read, and close: nobody knows where the next request would begin."""
        if self._refused is not None:
            return
        self._refused = problem
        self._expires = 0.0
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.fail_body(problem)
        if incoming is not None and (incoming is self._current or incoming in self._waiting):
            return  # whoever reads its body answers
        if self._current is not None or self._waiting:  # those answers come first
            return
        self._answer_refusal()

    def _answer_refusal(self) -> None:
        problem = self._refused
        assert problem is not None
        body = problem.encode()
        named = (("content-type", "application/json"), ("content-length", str(len(body))), *problem.headers)
        lines = header_lines((*named, ("connection", "close")))
        self.transport.write(answer_head(problem.status, lines) + body)
        self._close_gently(is_sending=True)
