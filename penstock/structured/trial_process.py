"""Compiles constraints where nothing is lost: a process of its own, which is killed when a constraint takes too long or
too much memory, or brings the library down. Run by ``trial``; speaks frames of msgpack on standard input and output.

Constraints come from strangers, the libraries are native code, and a compilation can be neither interrupted nor given
an upper bound: a schema of forty characters can ask for gigabytes.
"""

from __future__ import annotations

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
    """Answer every constraint with the sentence against it, or an empty one."""
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
        problem = ""
        try:
            compiler.compile(decoder.decode(frames.get())).open().fill()
        except ConstraintError as error:
            problem = str(error)
        except MemoryError:
            problem = "The constraint needs too much memory to compile."
        write_frame(answers, problem.encode("utf-8", "replace"))


def _read(source: IO[bytes], frames: SimpleQueue[bytes]) -> None:
    """On a thread of its own, so that the end of the parent ends this process in the midst of a compilation too."""
    while (frame := read_frame(source)) is not None:
        frames.put(frame)
    os._exit(0)


def _limit_memory(more_bytes: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + more_bytes, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
