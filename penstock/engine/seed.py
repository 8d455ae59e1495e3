"""The seed of an engine's start: what the user asked for, or one that nobody has seen before."""

from __future__ import annotations

import os


def start_seed(asked: int | None) -> int:
    """The seed that requests without one of their own derive theirs from. None draws one from the system's entropy,
    so that a server that is started again does not give its first users the same answers again."""
    return int.from_bytes(os.urandom(8), "little") >> 1 if asked is None else asked
