"""Compiles constraints where nothing is lost: a process of its own, which is killed when a constraint takes too long or
too much memory, or brings the library down. Run by ``trial``; speaks frames of msgpack on standard input and output.

Constraints come from strangers, the libraries are native code, and a compilation can be neither interrupted nor given
an upper bound: a schema of forty characters can ask for gigabytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO

import msgspec

from penstock.structured.contract import ConstraintError, Vocabulary
from penstock.types.structured import StructuredSpec

LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOrder:
    """The first frame: for whom to compile, and how many bytes more than at the start the process may have."""

    backend: str
    vocabulary: Vocabulary
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialAnswer:
    """``problem`` is the sentence against the constraint, or empty; ``num_bytes`` is what its grammar holds."""

    problem: str = ""
    num_bytes: int = 0


def write_frame(stream: IO[bytes], data: bytes) -> None:
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """None at the end of the stream."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else None


def main() -> None:
    """Answer every constraint with a TrialAnswer."""
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    first = read_frame(source)
    if first is None:
        return
    order = msgspec.msgpack.decode(first, type=TrialOrder)
    from penstock.structured.select import BACKENDS

    compiler = BACKENDS[order.backend].prepare(order.vocabulary)
    _limit_memory(order.memory_bytes)
    write_frame(answers, b"")
    frames: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(source, frames), daemon=True).start()
    decoder = msgspec.msgpack.Decoder(StructuredSpec)
    while True:
        spec = decoder.decode(frames.get())
        before = _resident_bytes()
        try:
            session = compiler.compile(spec).open()
            session.fill()
            answer = TrialAnswer(num_bytes=max(0, _resident_bytes() - before))
            del session
        except ConstraintError as error:
            answer = TrialAnswer(problem=str(error).encode("utf-8", "replace").decode())
        except MemoryError:
            os._exit(1)
        write_frame(answers, msgspec.msgpack.encode(answer))


def _read(source: IO[bytes], frames: SimpleQueue[bytes]) -> None:
    """On a thread of its own, so that the end of the parent ends this process in the midst of a compilation too."""
    while (frame := read_frame(source)) is not None:
        frames.put(frame)
    os._exit(0)


def _resident_bytes() -> int:
    """Memory in use, without what was freed and kept for later where that can be given back; 0 where unknown."""
    if sys.platform != "linux":
        return 0
    with contextlib.suppress(AttributeError, OSError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _limit_memory(more_bytes: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + more_bytes, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
