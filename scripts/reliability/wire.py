"""A client that can do wrong: raw requests over one connection, answers read by the letter of HTTP/1.1."""

from __future__ import annotations

import asyncio
import json
import re
import select
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 60.0


@dataclass
class Answer:
    """``status`` 0: the connection ended without an answer; -1: nothing came in time."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    @property
    def sentence(self) -> str:
        """What an error says to a person; empty when it says nothing."""
        try:
            error = json.loads(self.body)["error"]
            return str(error["message"])
        except (ValueError, KeyError, TypeError):
            return ""

    @property
    def events(self) -> list[str]:
        """Data of server-sent events."""
        parts = self.body.decode("utf-8", "replace").split("\n\n")
        return [line[6:] for part in parts for line in part.split("\n") if line.startswith("data: ")]


@dataclass
class Outcome:
    """What came back from one attack. ``broken`` has a sentence for every promise that was not kept."""

    number: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        self.number += 1
        self.counts[what] += 1

    def expect(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.broken.append(sentence)


def post(path: str, body: Any, *headers: str, version: str = "1.1") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "host: test", f"content-length: {len(data)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + data


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return ("\r\n".join([f"{method} {path} HTTP/1.1", "host: test", *headers]) + "\r\n\r\n").encode("latin-1")


class Connection:
    """Use as an asynchronous context manager. ``receive_buffer`` makes a client that can take little."""

    def __init__(self, port: int, receive_buffer: int = 0) -> None:
        self._port = port
        self._receive_buffer = receive_buffer
        self._first = b""

    async def __aenter__(self) -> Connection:
        plain = socket.socket()
        if self._receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        plain.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self._port))
            limit = self._receive_buffer or 1 << 20
            self.reader, self.writer = await asyncio.open_connection(sock=plain, limit=limit)
        except BaseException:
            plain.close()
            raise
        self.socket = plain
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def send(self, data: bytes) -> bool:
        """False when the server has gone."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except (ConnectionError, OSError):
            return False
        return True

    async def begun(self, seconds: float = TIMEOUT_S) -> None:
        """Wait until the head of an answer has begun to come."""
        async with asyncio.timeout(seconds):
            self._first = await self.reader.readexactly(1)

    async def answer(self, *, seconds: float = TIMEOUT_S, has_body: bool = True) -> Answer:
        """The next answer; what there is of it when it is not complete in time."""
        answer = Answer()
        try:
            async with asyncio.timeout(seconds):
                await self._read(answer, has_body)
        except TimeoutError:
            answer.status = answer.status or -1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        return answer

    async def _read(self, answer: Answer, has_body: bool) -> None:
        status = 100
        while 100 <= status < 200:
            head, self._first = self._first + await self.reader.readuntil(b"\r\n\r\n"), b""
            first, *lines = head[:-4].decode("latin-1").split("\r\n")
            status = int(first.split(" ")[1])
        answer.status = status
        for line in lines:
            name, _, value = line.partition(":")
            answer.headers[name.lower()] = value.strip()
        if not has_body:
            pass
        elif answer.headers.get("transfer-encoding") == "chunked":
            while size := int((await self.reader.readuntil(b"\r\n"))[:-2], 16):
                answer.body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        elif "content-length" in answer.headers:
            answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
        else:
            answer.body = await self.reader.read(-1)
        answer.complete = True

    def reset(self) -> None:
        """Leave with a reset instead of an orderly end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def reset_by_server(self, seconds: float) -> bool:
        """Whether the server resets the connection within so many seconds. Nothing is read meanwhile."""
        poll = select.poll()
        poll.register(self.socket.fileno(), 0)  # errors and the end of both directions are always told
        end = time.monotonic() + seconds
        while not poll.poll(0):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.05)
        return True


async def ask(port: int, request: bytes, *, seconds: float = TIMEOUT_S) -> Answer:
    """One request on a connection of its own."""
    async with Connection(port) as connection:
        await connection.send(request)
        return await connection.answer(seconds=seconds, has_body=not request.startswith(b"HEAD"))


async def load_of(port: int, key: str = "") -> dict[str, Any]:
    headers = (f"authorization: Bearer {key}",) if key else ()
    answer = await ask(port, get("/debug/load", *headers))
    loaded: dict[str, Any] = json.loads(answer.body)
    return loaded


async def num_aborted(port: int) -> int:
    """Sequences that the server has ended before their time, because their client was gone."""
    metrics = (await ask(port, get("/metrics"))).body.decode()
    found = re.findall(
        r'^[\w:]*request_success_total\{[^}]*finished_reason="abort"[^}]*\} ([\d.]+)', metrics, re.MULTILINE
    )
    return round(sum(map(float, found)))


async def until_idle(port: int, outcome: Outcome, seconds: float = 30.0) -> None:
    """Wait until the engine and the frontend have nothing left; a broken promise when they keep something."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        load = await load_of(port)
        left = {name: load[name] for name in ("num_open", "num_running", "num_waiting", "kv_usage") if load[name]}
        if not left:
            outcome.notes.append("0 requests and 0 blocks left")
            return
        if asyncio.get_running_loop().time() > end:
            outcome.broken.append(f"left behind: {left}")
            return
        await asyncio.sleep(0.05)
