"""An HTTP load generator for any OpenAI-compatible server: one connection per stream, timestamps per chunk.

It parses as little as it can while the clock runs: a chunk is stamped when its bytes arrive, and read afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

from penstock.errors import ConfigError

_DATA = b"data:"
_DONE = b"[DONE]"


@dataclass(slots=True)
class Trace:
    """One request as the client saw it. Times are ``time.perf_counter()`` seconds; ``arrivals`` has one per content
    chunk, ``num_tokens`` is what the server's usage says (or the number of chunks when it says nothing)."""

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
            "Connection: close",
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


class _Reader:
    """Callbacks of the response parser; collects the pieces of the body with their arrival time."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.pieces: list[tuple[float, bytes]] = []
        self.complete = False
        self.now = 0.0

    def on_body(self, body: bytes) -> None:
        self.pieces.append((self.now, body))

    def on_message_complete(self) -> None:
        self.complete = True


async def send(target: Target, body: bytes) -> Trace:
    """One request, to its end. Never raises for what a server does: failures are in the trace."""
    trace = Trace(started=time.perf_counter())
    reader = _Reader(trace)
    parser = httptools.HttpResponseParser(reader)
    try:
        async with asyncio.timeout(target.timeout_s):
            await _exchange(target, body, reader, parser)
        trace.status = parser.get_status_code()
    except (OSError, TimeoutError, httptools.HttpParserError) as error:
        trace.error = f"{type(error).__name__}: {error}"
    trace.ended = time.perf_counter()
    _read_events(trace, reader.pieces)
    if not trace.error and not reader.complete:
        trace.error = "the connection closed before the answer was complete"
    return trace


async def _exchange(target: Target, body: bytes, reader: _Reader, parser: httptools.HttpResponseParser) -> None:
    host, port = target.address
    incoming, outgoing = await asyncio.open_connection(host, port)
    try:
        outgoing.write(target.headers(len(body)) + body)
        while not reader.complete:
            data = await incoming.read(1 << 16)
            if not data:
                return
            reader.now = time.perf_counter()
            parser.feed_data(data)
    finally:
        outgoing.close()


def _read_events(trace: Trace, pieces: list[tuple[float, bytes]]) -> None:
    """Split the body into server-sent events; an event arrived when its last byte did."""
    buffer = b""
    for when, piece in pieces:
        buffer += piece
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            payload = event.strip().removeprefix(_DATA).strip()
            if payload and payload != _DONE:
                _read_event(trace, when, payload)
    if trace.status not in (0, 200) and not trace.error:
        trace.error = f"HTTP {trace.status}: {b''.join(p for _, p in pieces)[:200].decode(errors='replace')}"
    trace.num_tokens = trace.num_tokens or len(trace.arrivals)


def _read_event(trace: Trace, when: float, payload: bytes) -> None:
    try:
        chunk = json.loads(payload)
    except ValueError:
        trace.error = f"an event that is not JSON: {payload[:80]!r}"
        return
    if "error" in chunk:
        trace.error = str(chunk["error"].get("message", chunk["error"]))
    usage = chunk.get("usage")
    if usage:
        trace.num_tokens = usage.get("completion_tokens", 0)
        trace.prompt_tokens = usage.get("prompt_tokens", 0)
    for choice in chunk.get("choices", ()):
        if choice.get("text") or (choice.get("delta") or {}).get("content"):
            trace.arrivals.append(when)
            return
