"""Graphs of native CPU kernels: programs of the compiled extension. Knows no step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from penstock.executor.graphs import GraphRefusedError, Recorded
from penstock.kernels.native.program import RecordingRefusedError, record
from penstock.kernels.pages import zeroed

T = TypeVar("T")


class NativeRecorder:
    """Implements ``graphs.Recorder``. Results of all programs share one region of ``nbytes``."""

    name = "native program"

    def __init__(self, nbytes: int) -> None:
        self._buffer = zeroed(nbytes)

    def record(self, compute: Callable[[], T], /) -> tuple[Recorded, T]:
        try:
            return record(compute, self._buffer)
        except RecordingRefusedError as error:
            raise GraphRefusedError(str(error)) from error
