"""The parent's side of the trial process: asks whether a constraint compiles, and gives up in time."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from penstock.structured.contract import ConstraintError, Vocabulary
from penstock.structured.trial_process import LENGTH, TrialAnswer, TrialOrder, write_frame
from penstock.types.structured import StructuredSpec

log = logging.getLogger(__name__)

START_S = 60.0
"""Until the process has imported its library and read the vocabulary, on a busy machine."""


class NoTrialError(Exception):
    """No trial process can be had on this machine."""


class _EndedError(Exception):
    """The process has ended without an answer."""


class TrialLimitError(ConstraintError):
    """The constraint took more than it may, or ended the process: perhaps not so on another day."""


class Trial:
    """Owns a process that is started when it is first needed, and again after it had to be killed. Used by one thread
    at a time, but for ``close``."""

    def __init__(self, backend: str, vocabulary: Vocabulary, *, time_limit_s: float, memory_bytes: int) -> None:
        self._order = msgspec.msgpack.encode(
            TrialOrder(backend=backend, vocabulary=vocabulary, memory_bytes=memory_bytes)
        )
        self._time_limit_s = time_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def check(self, spec: StructuredSpec) -> int:
        """How many bytes its grammar holds, about.

        Raises ConstraintError with what is wrong, NoTrialError when the process cannot be started. A process that
        compiled others before may have kept their memory: what ends it has another trial in a new one.
        """
        was_used = self._process is not None
        try:
            return self._check(spec)
        except _EndedError:
            try:
                if not was_used:
                    raise
                return self._check(spec)
            except _EndedError:
                raise TrialLimitError(
                    f"Compiling the {spec.kind.value} needs too much memory, or brings the compiler down. Make it "
                    "simpler."
                ) from None

    def _check(self, spec: StructuredSpec) -> int:
        process = self._started()
        try:
            assert process.stdin is not None
            write_frame(process.stdin, msgspec.msgpack.encode(spec))
            answer = self._read(process, time.monotonic() + self._time_limit_s)
        except TimeoutError:  # an OSError too
            self._kill()
            raise TrialLimitError(
                f"Compiling the {spec.kind.value} took longer than {self._time_limit_s:g} s. Make it simpler: smaller "
                "bounds, fewer alternatives, no large multipleOf."
            ) from None
        except OSError:
            answer = None
        if not answer:
            self._kill()
            if self._closed:
                raise ConstraintError("The engine was stopped.")
            raise _EndedError
        found = msgspec.msgpack.decode(answer, type=TrialAnswer)
        if found.problem:
            raise ConstraintError(found.problem)
        return found.num_bytes

    def close(self) -> None:
        """Also ends a check that is running. Idempotent."""
        self._closed = True
        self._kill()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "penstock.structured.trial_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": _with_package(os.environ.get("PYTHONPATH", ""))},
            )
        except OSError as error:
            raise NoTrialError(f"a process for trial compilations cannot be started: {error}") from error
        self._process = process
        try:
            assert process.stdin is not None
            write_frame(process.stdin, self._order)
            greeting = self._read(process, time.monotonic() + START_S)
        except OSError:
            greeting = None
        if greeting is None:
            self._kill()
            raise NoTrialError("the process for trial compilations did not start")
        return process

    def _read(self, process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        """One frame; None when the process has ended. Raises TimeoutError."""
        head = _read_exactly(process, LENGTH.size, deadline)
        return None if head is None else _read_exactly(process, LENGTH.unpack(head)[0], deadline)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # unwritten bytes have no reader
                    stream.close()


def _read_exactly(process: subprocess.Popen[bytes], count: int, deadline: float) -> bytes | None:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    data = b""
    while len(data) < count:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(descriptor, count - len(data))
        if not part:
            return None
        data += part
    return data


def _with_package(path: str) -> str:
    """So that the child finds this very package, wherever it was imported from."""
    return os.pathsep.join(part for part in (str(Path(__file__).parents[2]), path) if part)
