"""The HTTP/1.1 parser's connection, with limits on what may precede a body."""

from __future__ import annotations

import asyncio
import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.frontend.openai.errors import HttpError

_LOG = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers together. The parser itself would collect without limit."""
HEAD_TIMEOUT_S = 20.0
"""Seconds from the first byte of a request head (or from the connection) to its end."""


class LimitedProtocol(HttpToolsProtocol):
    """Answers 431 to a head that is too large, drops connections whose head never ends, and speaks JSON on 400."""

    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A head that has ended has stopped the timer; what came with it is body. Counted after the parser, because a
        # new message resets the count.
        if self._head_timer is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HttpError(431, f"Request line and headers exceed {MAX_HEAD_BYTES} bytes."), b"431")

    def on_message_begin(self) -> None:
        self._head_bytes = 0
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HttpError(400, "This is not a valid HTTP request.", code="invalid_http"), b"400")

    def _refuse(self, problem: HttpError, status: bytes) -> None:
        self._stop_timer()
        body = problem.encode()
        self.transport.write(
            b"HTTP/1.1 " + status + b" Refused\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
        )
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
