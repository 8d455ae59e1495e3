"""The clock of a running engine. Tests put a virtual one in its place."""

from __future__ import annotations

import time


class MonotonicClock:
    """``time.monotonic()`` seconds."""

    def now(self) -> float:
        return time.monotonic()
