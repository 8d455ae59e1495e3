"""Recording: Python code that calls native ops becomes a program that repeats the calls without Python.

While code is recorded its native ops do not run, so nothing may look at values, and whatever torch computes by itself
would be missing from the program. Both are refused at the first attempt, with the call's name: a program that exists
is the whole computation. Views are free, and so are shapes, strides and addresses. Knows no op and no model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.kernels.native.extension import extension
from penstock.kernels.native.memory import Arena, ArenaFullError, results_in

T = TypeVar("T")

# tolist and numpy read values past torch's dispatcher, but pass through it for these first; nothing else does on CPUs.
_BEFORE_READS = frozenset(("aten::resolve_conj", "aten::resolve_neg"))


class RecordingRefusedError(Exception):
    """The code cannot be recorded; the message says which call is in the way."""


class _OnlyViews(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses every torch op that computes, allocates or reads. What is made of other ops is taken apart."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        match _kind_of(func):
            case "view":
                return func(*args, **(kwargs or {}))
            case "composite":
                with self:
                    return func.decompose(*args, **(kwargs or {}))
            case "read":
                raise RecordingRefusedError("Tensor.tolist or numpy reads values, which are different in every run")
            case _:
                raise RecordingRefusedError(f"{func} is torch's and would not be repeated")


@functools.cache
def _kind_of(func: Any) -> str:
    if func.name() in _BEFORE_READS:
        return "read"
    if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return "composite"
    return "view" if func.is_view else "other"


class Program:
    """A recorded computation. ``run`` repeats it on whatever its inputs hold by then, without the GIL.

    Inputs, weights and everything else that the code did not allocate through ``memory.empty`` must stay where it is.
    """

    def __init__(self, buffer: torch.Tensor) -> None:
        self._native = extension().Program()
        self._buffer = buffer  # results lie in it

    def __len__(self) -> int:
        """Kernel calls."""
        return len(self._native)

    def run(self) -> None:
        self._native.run()

    def run_timed(self) -> list[tuple[str, int]]:
        """The same, and answers the name and the nanoseconds of every kernel call in order."""
        times: list[tuple[str, int]] = self._native.run_timed()
        return times

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        self._native.record()
        try:
            yield
        finally:
            self._native.stop_recording()


def record(compute: Callable[[], T], buffer: torch.Tensor) -> tuple[Program, T]:
    """Record what ``compute`` calls; nothing runs. Its results, and all between, lie in ``buffer`` (uint8), which other
    programs may use too as long as one runs at a time and results are read before the next.

    The answer of ``compute`` is filled by every ``run``. Raises RecordingRefusedError when it does what cannot be
    recorded or the buffer is too small.
    """
    program = Program(buffer)
    try:
        with results_in(Arena(buffer)), program._recording(), _OnlyViews():  # type: ignore[no-untyped-call]
            return program, compute()
    except ArenaFullError as error:
        raise RecordingRefusedError(str(error)) from error
