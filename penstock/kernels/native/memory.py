"""Memory of results: torch's while kernels run at once, an arena's while they are recorded.

A program repeats its calls with the addresses that it was recorded with, so results must lie where nobody else writes:
in an arena, whose regions are handed out and taken back in the order in which the recorded Python code made and dropped
its tensors. The same order holds in every run of the program, so a region that is used twice is used safely.
Knows no op.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

ALIGNMENT = 64

# As numpy's array interface calls them. It has no bfloat16: an integer of its size stands in.
_NUMPY_TYPES = {
    torch.float32: "<f4",
    torch.bfloat16: "<i2",
    torch.float16: "<f2",
    torch.int64: "<i8",
    torch.int32: "<i4",
    torch.int8: "|i1",
    torch.uint8: "|u1",
    torch.bool: "|b1",
}


class ArenaFullError(Exception):
    """The arena has no free region of the size that was asked for."""


class Arena:
    """Hands out regions of ``buffer`` (uint8, contiguous), lowest address first. Regions come back when the last tensor
    on their memory is gone; a tensor that is kept keeps its region."""

    def __init__(self, buffer: torch.Tensor) -> None:
        self._buffer = buffer
        base = buffer.data_ptr()
        first = -base % ALIGNMENT
        self._base = base + first
        self._free: list[tuple[int, int]] = [(0, (buffer.numel() - first) // ALIGNMENT * ALIGNMENT)]
        self.peak = 0  # bytes of the buffer that have been used

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of undefined content. Raises ArenaFullError."""
        nbytes = max(1, math.prod(shape) * dtype.itemsize)
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        for i, (start, length) in enumerate(self._free):
            if length >= size:
                self._free[i : i + 1] = [(start + size, length - size)] if length > size else []
                break
        else:
            raise ArenaFullError(f"no region of {size} bytes is free in an arena of {self._buffer.numel()}")
        self.peak = max(self.peak, start + size)
        # torch's storage holds the array, the array holds the region: it dies with the last view of the tensor.
        stand_in = _NUMPY_TYPES[dtype]
        tensor = torch.from_numpy(np.asarray(_Region(self, start, size, self._base + start, shape, stand_in)))
        return tensor if tensor.dtype is dtype else tensor.view(dtype)

    def take_back(self, start: int, size: int) -> None:
        place = bisect.bisect(self._free, (start, 0))
        self._free.insert(place, (start, size))
        for i in (place, place - 1):  # join with the neighbour behind, then with the one before
            if 0 <= i < len(self._free) - 1 and sum(self._free[i]) == self._free[i + 1][0]:
                merged = (self._free[i][0], self._free[i][1] + self._free[i + 1][1])
                self._free[i : i + 2] = [merged]


class _Region:
    """Memory that numpy sees as an array, and that goes back to its arena when nobody does any more."""

    __slots__ = ("__array_interface__", "_arena", "_size", "_start")

    def __init__(self, arena: Arena, start: int, size: int, address: int, shape: tuple[int, ...], type_: str) -> None:
        self._arena, self._start, self._size = arena, start, size
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": shape, "typestr": type_}

    def __del__(self) -> None:
        self._arena.take_back(self._start, self._size)


class _Place(threading.local):
    """Where results of this thread lie; None is torch's memory. Another thread may run another engine meanwhile."""

    arena: Arena | None = None


_place = _Place()


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
    """Memory for a result of a native op. Arenas are the CPU's."""
    if _place.arena is not None:
        return _place.arena.allocate(shape, dtype)
    return torch.empty(shape, dtype=dtype, device=device)


@contextmanager
def results_in(arena: Arena) -> Iterator[None]:
    """Results of native ops that this thread calls lie in ``arena`` within the block."""
    before, _place.arena = _place.arena, arena
    try:
        yield
    finally:
        _place.arena = before
