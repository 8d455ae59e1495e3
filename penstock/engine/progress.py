"""How far the long parts of a start are, in lines for people. Knows no part."""

from __future__ import annotations

import time
from collections.abc import Callable

SAY_EVERY_S = 2.0  # a start that takes less says nothing of its parts
_DOING = {"weights": "loading weights", "kernels": "compiling kernels", "graphs": "recording decode steps"}


class StartProgress:
    """Called with a part, how much of it is done and how much there is; says so when the part has taken a while, and
    then every while. Not for several threads."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._part = ""
        self._said = 0.0

    def __call__(self, part: str, done: int, total: int) -> None:
        now = self._clock()
        if part != self._part:
            self._part, self._said = part, now
        elif now - self._said >= SAY_EVERY_S:
            self._said = now
            self._say(f"{_DOING.get(part, part)}: {done} of {total}")
