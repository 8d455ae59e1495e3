"""Limits and back-pressure before the engine: how much is open, and whether new work is taken at all.

Knows no request content and no socket.
"""

from __future__ import annotations

import asyncio

from penstock.errors import OverloadedError

_RETRY_AFTER_S = 1
_RETRY_AFTER_START_S = 5


class Admission:
    """Counts open sequences. Used from one event loop; ``drain`` may only be followed by ``idle``."""

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self.num_open = 0
        self.num_refused = 0
        self._ready = False
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def set_ready(self) -> None:
        self._ready = True

    @property
    def refusal(self) -> str:
        """Why nothing is taken now; empty when requests are welcome. A full queue is not a refusal."""
        if self._draining:
            return "The server is shutting down; open requests are being finished."
        if not self._ready:
            return "The server is starting; the model is not ready yet."
        return ""

    def check(self) -> None:
        """Raise OverloadedError (503) while starting or draining: cheap, before a body is parsed."""
        refusal = self.refusal
        if refusal:
            self.num_refused += 1
            retry = _RETRY_AFTER_S if self._draining else _RETRY_AFTER_START_S
            raise OverloadedError(refusal, status=503, retry_after_s=retry)

    def acquire(self, count: int) -> None:
        """Take ``count`` places or raise OverloadedError (503, or 429 when the queue is full).

        A request that alone is larger than the queue is taken by an empty server, so that it is not refused for ever.
        """
        self.check()
        if self.num_open and self.num_open + count > self.max_queue:
            self.num_refused += 1
            raise OverloadedError(
                f"The queue is full: {self.num_open} sequences are open, {count} more would exceed the limit of "
                f"{self.max_queue}. Try again later.",
                status=429,
                retry_after_s=_RETRY_AFTER_S,
            )
        self.num_open += count
        self._idle.clear()

    def release(self, count: int = 1) -> None:
        self.num_open -= count
        if self.num_open == 0:
            self._idle.set()

    def drain(self) -> None:
        """Take nothing new from now on."""
        self._draining = True

    async def idle(self) -> None:
        """Wait until nothing is open."""
        await self._idle.wait()
