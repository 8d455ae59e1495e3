"""A server process to attack, its memory, and a client in a process of its own that says whether it is disturbed."""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import TracebackType

import psutil

_SAMPLE_S = 0.05
_START_S = 120
_END_S = 60


class Server:
    """``penstock serve`` with these options on a free port. A context manager; ``wait`` answers the exit code."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None) -> None:
        self._options = options
        self._environment = environment

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "penstock.cli", "serve", *self._options, "--port", "0"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=self._environment)
        self.log: list[str] = []
        self.port = 0
        started = threading.Event()
        threading.Thread(target=self._read_log, args=(started,), daemon=True).start()
        in_time = started.wait(_START_S)
        if not in_time or not self.port:
            self._process.kill()
            self._process.wait()
            how = "ended instead of starting" if in_time else f"did not start in {_START_S} s"
            raise RuntimeError(f"the server {how}: {''.join(self.log)}")
        return self

    def _read_log(self, started: threading.Event) -> None:
        """``started`` is set when the server says that it takes requests, and when it has ended."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if len(self.log) < 1000:
                self.log.append(line)
            if not started.is_set():
                if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    self.port = self.port or int(found[1])
                if line.startswith("Any OpenAI client"):
                    started.set()
        started.set()

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def signal(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = _END_S) -> int | None:
        """The exit code; None when it does not end."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def memory(self) -> int:
        """Resident bytes of the frontend: the process that clients reach."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return int(psutil.Process(self._process.pid).memory_info().rss)
        return 0


class MemoryWatch:
    """``before``, ``peak`` and ``after`` of a server's memory, in bytes, around the body of a with statement."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ended = threading.Event()
        self.before = self.peak = self.after = server.memory()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self.peak = max(self.peak, self._server.memory())

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self.after = self._server.memory()
        self.peak = max(self.peak, self.after)


def _ask_for_ever(port: int, key: str, pipe: Connection) -> None:
    """One short stream after another on one connection; their times, in seconds, when the pipe says so."""
    times: list[float] = []
    errors = 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"prompt": "abc", "max_tokens": 4, "ignore_eos": True, "stream": True})
    headers = {"authorization": f"Bearer {key}"} if key else {}
    while True:
        if pipe.poll():
            if pipe.recv() == "end":
                pipe.send((times, errors))
                return
            pipe.send((times, errors))
            times, errors = [], 0
        begin = time.monotonic()
        try:
            connection.request("POST", "/v1/completions", body, headers)
            answer = connection.getresponse()
            data = answer.read()
            if answer.status != 200 or not data.endswith(b"data: [DONE]\n\n"):
                errors += 1
        except (OSError, http.client.HTTPException):
            errors += 1
            connection.close()
            time.sleep(0.01)
        times.append(time.monotonic() - begin)
        time.sleep(0.005)


class Neighbour:
    """Another client. ``take()`` answers the times of its requests since it was last asked, and how many failed."""

    def __init__(self, port: int, key: str = "") -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_ask_for_ever, args=(port, key, other), daemon=True)
        self._process.start()

    def take(self, word: str = "more") -> tuple[list[float], int]:
        self._pipe.send(word)
        times, errors = self._pipe.recv()
        return times, errors

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.take("end")
        self._process.join(10)


@contextlib.contextmanager
def neighbour(port: int, key: str = "") -> Iterator[Neighbour]:
    other = Neighbour(port, key)
    try:
        yield other
    finally:
        other.close()


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] if times else float("nan")
