"""An HTTP load generator for any OpenAI-compatible server: one connection per open stream, timestamps per chunk.

It reads as little as it can while a request runs: a piece is stamped when its bytes arrive, and read when the answer is
complete.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from penstock.errors import ConfigError

_DATA = b"data:"
_DONE = b"[DONE]"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(slots=True)
class Trace:
    """One request as the client saw it; ``due`` is when it should have been sent, in an open loop. Times are
    ``time.perf_counter()`` seconds; ``arrivals`` has one per content chunk, ``num_tokens`` is what the server's usage
    says (or the number of chunks when it says nothing)."""

    due: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    status: int = 0
    error: str = ""
    arrivals: list[float] = field(default_factory=list)
    num_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def ok(self) -> bool:
        return not self.error and self.status == 200 and bool(self.arrivals)

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.started

    @property
    def e2e(self) -> float:
        return self.ended - self.started

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None for single-token answers."""
        return (self.arrivals[-1] - self.arrivals[0]) / (self.num_tokens - 1) if self.num_tokens > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks (inter-token latency when every chunk is one token)."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server. ``chat`` picks the endpoint; ``api_key`` may be empty."""

    base_url: str
    model: str
    chat: bool = False
    api_key: str = ""
    timeout_s: float = 600.0

    @property
    def path(self) -> str:
        prefix = urlsplit(self.base_url).path.rstrip("/")
        prefix = prefix if prefix.endswith("/v1") else prefix + "/v1"
        return prefix + ("/chat/completions" if self.chat else "/completions")

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.base_url)
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigError(f"{self.base_url!r} is not a plain http:// address; put the load generator beside it.")
        return parts.hostname, parts.port or 80

    def headers(self, length: int) -> bytes:
        host, port = self.address
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {host}:{port}",
            "Content-Type: application/json",
            f"Content-Length: {length}",
        ]
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def body(self, prompt: str | list[int], num_tokens: int, extra: dict[str, Any]) -> bytes:
        fields: dict[str, Any] = {"model": self.model, "max_tokens": num_tokens, "stream": True, "temperature": 0.0}
        fields["stream_options"] = {"include_usage": True}
        if self.chat:
            if not isinstance(prompt, str):
                raise ConfigError("Chat requests need text prompts; give --prompts FILE or use completions.")
            fields["messages"] = [{"role": "user", "content": prompt}]
        else:
            fields["prompt"] = prompt
        return json.dumps(fields | extra).encode()


class Connection(asyncio.Protocol):
    """One connection, used for one request after another. Pieces of an answer are stamped when they arrive; nothing is
    read in them but the end of the answer."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.lost = ""
        self.is_reusable = True
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._complete: Callable[[bytes], bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))
        if self._complete is None:
            self._complete = self._end_of_answer()
        if self._complete is not None and self._complete(data):
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = str(exc) if exc else "the server closed the connection"
        self.is_reusable = False
        self._finish()

    async def exchange(self, data: bytes) -> None:
        """Send a request and wait for the end of its answer, or of the connection."""
        assert self._transport is not None
        self.pieces = []
        self._complete = None
        if self.lost:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        await self._waiter

    def close(self) -> None:
        self.is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    def _finish(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end_of_answer(self) -> Callable[[bytes], bool] | None:
        """How the end is known, once the head is there: by the last chunk, or by a number of bytes."""
        received = b"".join(piece for _, piece in self.pieces)
        head, found, _ = received.partition(b"\r\n\r\n")
        if not found:
            return None
        lines = head.lower().split(b"\r\n")
        self.is_reusable = b"connection: close" not in lines and not lines[0].startswith(b"http/1.0")
        if b"transfer-encoding: chunked" in lines:
            return self._ended_by_chunk
        lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
        if not lengths:
            self.is_reusable = False
            return lambda _: False  # until the connection ends
        wanted = len(head) + 4 + lengths[0]
        return lambda _: sum(len(piece) for _, piece in self.pieces) >= wanted

    def _ended_by_chunk(self, data: bytes) -> bool:
        # Raw line ends are escaped inside JSON, so that no event can contain an end.
        if len(data) < len(_LAST_CHUNK):
            data = b"".join(piece for _, piece in self.pieces[-len(_LAST_CHUNK) :])
        return data.endswith(_LAST_CHUNK)


class Client:
    """Connections to one server, kept for the next request. For one event loop."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._idle: list[Connection] = []

    async def send(self, body: bytes) -> Trace:
        """One request, to its end. Never raises for what a server does: failures are in the trace."""
        trace = Trace(started=time.perf_counter())
        pieces: list[tuple[float, bytes]] = []
        try:
            async with asyncio.timeout(self._target.timeout_s):
                pieces = await self._exchange(self._target.headers(len(body)) + body, trace)
        except (OSError, TimeoutError) as error:
            trace.error = f"{type(error).__name__}: {error}"
        trace.ended = time.perf_counter()
        _read_answer(trace, pieces)
        return trace

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _exchange(self, data: bytes, trace: Trace) -> list[tuple[float, bytes]]:
        while True:
            kept = bool(self._idle)
            connection = self._idle.pop() if kept else await self._connect()
            try:
                await connection.exchange(data)
            except BaseException:
                connection.close()
                raise
            if kept and not connection.pieces:
                continue  # the server had closed it while it was idle
            if connection.lost and not connection.pieces:
                trace.error = connection.lost
            if connection.is_reusable:
                self._idle.append(connection)
            else:
                connection.close()
            return connection.pieces

    async def _connect(self) -> Connection:
        host, port = self._target.address
        _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
        return connection


class _Reader:
    """Callbacks of the response parser: the pieces of the body with their arrival time."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.complete = False
        self.now = 0.0

    def on_body(self, body: bytes) -> None:
        self.pieces.append((self.now, body))

    def on_message_complete(self) -> None:
        self.complete = True


def _read_answer(trace: Trace, received: list[tuple[float, bytes]]) -> None:
    """Fill a trace from what arrived, after the clock has stopped."""
    reader = _Reader()
    parser = httptools.HttpResponseParser(reader)
    try:
        for reader.now, data in received:
            parser.feed_data(data)
        trace.status = parser.get_status_code() if received else 0
    except httptools.HttpParserError as error:
        trace.error = trace.error or f"{type(error).__name__}: {error}"
    said_done = _read_events(trace, reader.pieces)
    if not trace.error and not reader.complete and not said_done:
        trace.error = "the connection closed before the answer was complete"


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # what vLLM calls it
    tool_calls: msgspec.Raw | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    """What a load generator wants to know of an event."""

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode


def _read_events(trace: Trace, pieces: list[tuple[float, bytes]]) -> bool:
    """Split the body into server-sent events; an event arrived when its last byte did. Line ends may be of either kind
    (raw ones are escaped inside JSON), and comments and other fields may stand between. True when the stream said that
    it is done."""
    buffer = b""
    said_done = False
    for when, piece in pieces:
        buffer += piece.replace(b"\r", b"")
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            lines = [line[len(_DATA) :] for line in event.split(b"\n") if line.startswith(_DATA)]
            payload = b"\n".join(lines).strip()
            said_done = said_done or payload == _DONE
            if payload and payload != _DONE:
                _read_event(trace, when, payload)
    if trace.status not in (0, 200) and not trace.error:
        trace.error = f"HTTP {trace.status}: {b''.join(p for _, p in pieces)[:200].decode(errors='replace')}"
    trace.num_tokens = trace.num_tokens or len(trace.arrivals)
    return said_done


def _read_event(trace: Trace, when: float, payload: bytes) -> None:
    try:
        event = _decode_event(payload)
    except msgspec.MsgspecError:
        trace.error = f"an event that is not JSON of a stream: {payload[:80]!r}"
        return
    if event.error is not None:
        told = event.error.get("message") if isinstance(event.error, dict) else None
        trace.error = str(told or event.error)
    if event.usage is not None:
        trace.num_tokens = event.usage.completion_tokens
        trace.prompt_tokens = event.usage.prompt_tokens
    for choice in event.choices:
        delta = choice.delta
        if choice.text or (delta and (delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)):
            trace.arrivals.append(when)
            return
