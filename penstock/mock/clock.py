"""Clocks that can be waited on: the real one, and a virtual one whose time passes only when somebody waits."""

from __future__ import annotations

import time
from typing import Protocol


class WaitableClock(Protocol):
    def now(self) -> float:
        """Monotonic seconds."""

    def sleep_until(self, moment: float) -> None:
        """Return when ``now()`` is at least ``moment``."""


class RealClock:
    """``time.monotonic()`` seconds, as the engine's own clock."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        delay = moment - time.monotonic()
        if delay > 0:
            time.sleep(delay)


class VirtualClock:
    """Starts at ``start`` and stands still between ``advance`` and ``sleep_until``. For one thread."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time does not run backwards, got {seconds} seconds")
        self._now += seconds

    def sleep_until(self, moment: float) -> None:
        self._now = max(self._now, moment)
