"""What may be held for clients in memory: one sum over all connections, and a watch over those that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

STALL_CHECKS = 8
"""Looks at a client that does not read within its time: it may have a bit more than the time that it is given."""


class Buffers:
    """Bytes held for clients: bodies of open requests, and what they have not read of their answers.

    Used from one event loop. The sum is an estimate for what is not bytes yet; its callers count from above.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Count ``size`` more; False, and nothing is counted, when that would be more than the limit."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def take_anyway(self, size: int) -> None:
        """Count what is held already."""
        self.used += size

    def give_back(self, size: int) -> None:
        self.used -= size


class StallWatch:
    """Looks whether a client reads what waits for it, from ``start`` until nothing does or ``stop``.

    Between two looks nothing may be added to what waits, so that less of it is progress. ``on_stalled`` is called once
    when nothing was read for ``seconds``.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        buffers: Buffers,
        seconds: float,
        on_stalled: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._buffers = buffers
        self._seconds = seconds
        self._on_stalled = on_stalled
        self._size = 0  # what waited at the last look, and is counted in the buffers
        self._read_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            self._read_at = self._loop.time()
            self._count(self._transport.get_write_buffer_size())
            self._timer = self._loop.call_later(self._seconds / STALL_CHECKS, self._look)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._count(0)

    def _look(self) -> None:
        self._timer = None
        size, now = self._transport.get_write_buffer_size(), self._loop.time()
        if size < self._size:
            self._read_at = now
        self._count(size)
        if size == 0:
            return
        if now - self._read_at >= self._seconds:
            self._count(0)
            self._on_stalled()
            return
        self._timer = self._loop.call_later(self._seconds / STALL_CHECKS, self._look)

    def _count(self, size: int) -> None:
        self._buffers.take_anyway(size - self._size)
        self._size = size
