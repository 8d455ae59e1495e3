"""One HTTP request and its answer over ASGI: bounded body reading, one-shot answers, event streams, disconnects.

Knows no protocol above HTTP. Everything that touches the socket of an answer is in this file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from penstock.frontend.openai.errors import HttpError

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[str, str]]

CONGESTED_BYTES = 64 << 10
"""Unsent bytes of one stream above which its writer should merge instead of append."""


class EventStream:
    """The body of one streamed answer, fed by plain calls on the event loop's thread.

    ``write`` never blocks. All that is ready is sent in one piece. When the reader is slower than the writer,
    ``congested`` turns true; the writer then folds further news into one pending chunk and ``on_room`` asks for it
    once the socket has taken what was queued. A slow reader so costs no more memory than the same request without
    streaming, and no one else waits for it.
    """

    __slots__ = ("_closed", "_pieces", "_size", "_wake", "has_written", "on_room")

    def __init__(self) -> None:
        self.has_written = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._closed = False
        self._wake = asyncio.Event()
        self.on_room: Callable[[], None] | None = None

    @property
    def congested(self) -> bool:
        return self._size > CONGESTED_BYTES

    def write(self, piece: bytes) -> None:
        self.has_written = True
        self._pieces.append(piece)
        self._size += len(piece)
        self._wake.set()

    def close(self) -> None:
        """No piece follows; ``pump`` returns when all is sent. Idempotent."""
        self._closed = True
        self._wake.set()

    async def opened(self) -> None:
        """Wait until there is something to send, or the stream is closed."""
        await self._wake.wait()

    async def pump(self, send: Send) -> None:
        """Send pieces until the stream is closed. Waits for the socket, never the other way round."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._size = 0
            if self.on_room is not None:
                self.on_room()
            done = self._closed and not self._pieces
            if data or done:
                await send({"type": "http.response.body", "body": data, "more_body": not done})
            if done:
                return
            if self._pieces or self._closed:
                self._wake.set()


class Exchange:
    """What a route handler gets. ``headers`` keys are lower case; a repeated header keeps its last value."""

    __slots__ = (
        "_receive",
        "_send",
        "extra_headers",
        "headers",
        "method",
        "path",
        "request_id",
        "started",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        self.extra_headers: list[tuple[str, str]] = []
        self.request_id = ""
        self.started = False
        self._receive = receive
        self._send = send

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body. Raises HttpError 413 as soon as it is known to be larger than ``max_bytes``."""
        declared = self.headers.get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > max_bytes:
            raise _too_large(max_bytes)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the client left while it sent its request")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > max_bytes:
                raise _too_large(max_bytes)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def gone(self) -> None:
        """Return when the client has disconnected (or the answer is complete)."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self, status: int, body: bytes, content_type: str = "application/json", headers: Headers = ()
    ) -> None:
        """Send one complete answer."""
        await self._start(status, content_type, (("content-length", str(len(body))), *headers))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def answer_problem(self, problem: HttpError) -> None:
        await self.answer(problem.status, problem.encode(), headers=problem.headers)

    async def answer_stream(self, stream: EventStream) -> None:
        """Send server-sent events until ``stream`` is closed and empty."""
        await self._start(200, "text/event-stream; charset=utf-8", _STREAM_HEADERS)
        await stream.pump(self._send)

    async def _start(self, status: int, content_type: str, headers: Headers) -> None:
        self.started = True
        named = [("content-type", content_type), *headers, *self.extra_headers]
        if self.request_id:
            named.append(("x-request-id", self.request_id))
        encoded = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in named]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})


_STREAM_HEADERS = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))


def _too_large(max_bytes: int) -> HttpError:
    # The rest of the body is not read, so the connection cannot be used for another request.
    return HttpError(
        413,
        f"The request body is larger than the {max_bytes} bytes that this server takes (--max-request-bytes).",
        code="request_too_large",
        headers=(("connection", "close"),),
    )
