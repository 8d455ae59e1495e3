"""One HTTP request and its answer: bounded body reading, one-shot answers, event streams, disconnects.

Everything that is written of an answer is written in this file, straight to the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Protocol

from penstock.frontend.buffers import Buffers
from penstock.frontend.openai.errors import HttpError, encode_problem

Headers = Iterable[tuple[str, str]]
ProblemEncoder = Callable[[HttpError, str], bytes]

CONGESTED_BYTES = 64 << 10
"""Unsent bytes of one connection above which the writer of a stream should merge instead of append."""
_UNREAD_BYTES = 64 << 10
"""Bytes of a body that are taken before somebody reads it, and whatever else is held."""

_STATUS_LINES = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode() for status in HTTPStatus}
_STREAM_HEADERS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
)
_CHUNKED = (("transfer-encoding", "chunked"),)
_LINE_ENDS = str.maketrans("\r\n", "  ")


class Wire(Protocol):
    """What an exchange needs of its connection."""

    transport: asyncio.Transport
    paused: bool  # the transport has more to send than it should hold
    buffers: Buffers

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Exchange:
    """What a route handler gets. ``headers`` keys are lower case; a repeated header keeps its last value.

    ``on_gone`` is called once when the client disconnects before the answer is complete; ``on_room`` when a stream
    that was ``congested`` has been read. ``encode_problem`` makes the body of an answer that is an error, from the
    error and the request's id. ``owner`` stands for the key that the client has presented; empty: no key is needed.
    """

    __slots__ = (
        "_body",
        "_body_ended",
        "_body_problem",
        "_body_size",
        "_chunked",
        "_connection",
        "_held",
        "_max_body",
        "_target",
        "_waiter",
        "_write",
        "complete",
        "encode_problem",
        "extra_headers",
        "gone",
        "headers",
        "keep_alive",
        "method",
        "on_gone",
        "on_room",
        "owner",
        "path",
        "request_id",
        "started",
    )

    def __init__(
        self,
        connection: Wire,
        *,
        method: str,
        target: bytes,
        headers: dict[str, str],
        keep_alive: bool = True,
        chunked: bool = True,
    ) -> None:
        self.method = method
        self.path = _path_of(target)
        self._target = target
        self.headers = headers
        self.extra_headers: list[tuple[str, str]] = []
        self.request_id = ""
        self.owner = b""
        self.keep_alive = keep_alive
        self.started = False
        self.complete = False
        self.gone = False
        self.encode_problem: ProblemEncoder = encode_problem
        self.on_gone: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self._connection = connection
        self._write = connection.transport.write
        self._chunked = chunked
        self._body: list[bytes] = []
        self._body_size = 0
        self._body_ended = False
        self._body_problem: HttpError | None = None
        self._held = 0
        self._max_body: int | None = None  # known once somebody reads
        self._waiter: asyncio.Future[None] | None = None

    @property
    def query(self) -> dict[str, str]:
        """Parameters behind the path; a repeated one keeps its last value."""
        if b"?" not in self._target:
            return {}
        from urllib.parse import parse_qsl

        return dict(parse_qsl(self._target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True))

    # -- the connection's calls ----------------------------------------------------------------------------------

    def feed(self, body: bytes) -> None:
        if self.complete or self._body_problem is not None:
            return
        self._body_size += len(body)
        if self._max_body is None:
            if self._body_size > _UNREAD_BYTES:
                self._connection.pause_reading()
        elif self._body_size > self._max_body:
            self.fail_body(_too_large(self._max_body))
            return
        if self._held_or_small(len(body), self._body_size):
            self._body.append(body)
        else:
            self.fail_body(self.too_much_held())

    def feed_end(self) -> None:
        self._body_ended = True
        self._wake()

    def fail_body(self, problem: HttpError) -> None:
        """The rest of the body will not be read: whoever reads it gets ``problem``. Nothing is known of where the next
        request begins, so that this one is the last."""
        self.keep_alive = False
        self._body_problem = problem
        self._body.clear()
        self._wake()

    def discard_rest(self) -> None:
        """Nobody wants the rest of the body."""
        self._body.clear()

    def disconnected(self) -> None:
        if self.gone:
            return
        self.gone = True
        self._wake()
        if self.on_gone is not None and not self.complete:
            self.on_gone()

    def has_room(self) -> None:
        if self.on_room is not None:
            self.on_room()

    # -- reading -------------------------------------------------------------------------------------------------

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body. Raises HttpError 413 as soon as it is known to be larger than ``max_bytes``, and
        ConnectionResetError when the client has left."""
        self._max_body = max_bytes
        declared = self.headers.get("content-length", "")
        if (declared.isdigit() and int(declared[:20]) > max_bytes) or self._body_size > max_bytes:
            self.fail_body(_too_large(max_bytes))
        elif not self._body_ended:
            if self.headers.get("expect", "").lower() == "100-continue":
                self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._connection.resume_reading()
        while not self._body_ended and not self.gone and self._body_problem is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._body_problem is not None:
            raise self._body_problem
        if not self._body_ended:
            raise ConnectionResetError("the client left while it sent its request")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()  # what it became is held as long as the request is open, and counted so
        return body

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- what is held for the client -----------------------------------------------------------------------------

    def hold(self, size: int) -> bool:
        """Count ``size`` bytes as held for this client until the exchange ends or they are released; False, and they
        are not counted, when the server holds too much already."""
        if not self._connection.buffers.take(size):
            return False
        self._held += size
        return True

    def require(self, size: int) -> None:
        """``hold``, or raise HttpError 503. What is small passes, so that small requests are taken at all times."""
        if not self._held_or_small(size, size):
            raise self.too_much_held()

    def _held_or_small(self, size: int, total: int) -> bool:
        """``hold``; up to a ``total`` of ``_UNREAD_BYTES`` in any case, which the number of connections bounds."""
        if self.hold(size):
            return True
        if total > _UNREAD_BYTES:
            return False
        self._held += size
        self._connection.buffers.take_anyway(size)
        return True

    def release(self, size: int | None = None) -> None:
        """No longer held; None: nothing of this exchange is."""
        size = self._held if size is None else size
        self._held -= size
        self._connection.buffers.give_back(size)

    def too_much_held(self) -> HttpError:
        """What to tell the client whose ``hold`` was False."""
        return HttpError(
            503,
            f"The server holds its limit of {self._connection.buffers.limit} bytes for requests and for clients that "
            "do not read their answers (--max-buffered-bytes). Try again later.",
            code="buffers_full",
        )

    # -- answering -----------------------------------------------------------------------------------------------

    async def answer(
        self, status: int, body: bytes, content_type: str = "application/json", headers: Headers = ()
    ) -> None:
        """Send one complete answer."""
        named = (("content-type", content_type), ("content-length", str(len(body))), *headers)
        self._send_head(status, header_lines(named), b"" if self.method == "HEAD" else body)
        self.complete = True

    async def answer_problem(self, problem: HttpError) -> None:
        await self.answer(problem.status, self.encode_problem(problem, self.request_id), headers=problem.headers)

    @property
    def congested(self) -> bool:
        """More is waiting for the client than should: merge instead of append."""
        return self._connection.paused

    def start_stream(self) -> None:
        """Send the head of a stream of server-sent events."""
        self._send_head(200, _STREAM_LINES[self._chunked])

    def write_piece(self, piece: bytes) -> None:
        """One or more events of a stream that was started. Never blocks; after a disconnect it does nothing."""
        if self.gone:
            return
        self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)

    def write_event(self, before: bytes, text: bytes, after: bytes) -> None:
        """The same for an event in three parts."""
        if self.gone:
            return
        if self._chunked:
            self._write(b"%x\r\n%b%b%b\r\n" % (len(before) + len(text) + len(after), before, text, after))
        else:
            self._write(before + text + after)

    def end_stream(self) -> None:
        if not self.gone and self._chunked:
            self._write(b"0\r\n\r\n")
        self.complete = True

    def _send_head(self, status: int, lines: bytes, body: bytes = b"") -> None:
        self.started = True
        if self.gone:
            return
        if self.extra_headers:
            lines += header_lines(self.extra_headers)
        if self.request_id:
            lines += b"x-request-id: %b\r\n" % self.request_id.encode()
        if not self.keep_alive:
            lines += b"connection: close\r\n"
        self._write(answer_head(status, lines) + body)


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(
        413,
        f"The request body is larger than the {max_bytes} bytes that this server takes (--max-request-bytes).",
        code="request_too_large",
    )


def answer_head(status: int, lines: bytes) -> bytes:
    """Status line and header lines, with the empty line that ends them."""
    return _STATUS_LINES[status] + _date_line() + lines + b"\r\n"


def header_lines(headers: Headers) -> bytes:
    """Line ends in values become spaces."""
    lines = "".join([f"{name}: {value.translate(_LINE_ENDS)}\r\n" for name, value in headers])
    return lines.encode("latin-1", "replace")


_STREAM_LINES = {False: header_lines(_STREAM_HEADERS), True: header_lines((*_STREAM_HEADERS, *_CHUNKED))}


_date: tuple[int, bytes] = (0, b"")


def _date_line() -> bytes:
    """The date header, made once a second."""
    global _date
    second = int(time.time())
    if _date[0] != second:
        _date = (second, _format_date(second))
    return _date[1]


def _format_date(second: int) -> bytes:
    """RFC 9110 section 5.6.7; names of days and months are English in every locale."""
    year, month, day, hour, minute, sec, weekday, *_ = time.gmtime(second)
    day_name = "MonTueWedThuFriSatSun"[3 * weekday : 3 * weekday + 3]
    month_name = "JanFebMarAprMayJunJulAugSepOctNovDec"[3 * month - 3 : 3 * month]
    return f"date: {day_name}, {day:02} {month_name} {year} {hour:02}:{minute:02}:{sec:02} GMT\r\n".encode()


def _path_of(target: bytes) -> str:
    """The path of a request target, without query and percent signs. Targets with a scheme and a host lose both."""
    if b"?" in target or b"%" in target or not target.startswith(b"/"):
        from urllib.parse import unquote, urlsplit

        text = target.decode("latin-1")
        try:
            path = urlsplit(text).path if not text.startswith("/") else text.partition("?")[0]
        except ValueError:  # an address that is none: no route has it
            path = text
        return unquote(path)
    return target.decode("latin-1")
