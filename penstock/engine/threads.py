"""How kernel threads wait for each other. Must be said before torch loads its OpenMP runtime."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

_CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def prefer_short_spins(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP threads sleep soon when they wait, unless the user has chosen, or torch is here already.

    By default they spin for about a millisecond, on cores that the frontend, the core's thread and other processes
    need. Decoding SmolLM2-135M on two cores: 32 ms per token either way when idle; beside a load of 5, 42 to 50 ms
    instead of 174 to 328 ms.
    """
    if "torch" not in sys.modules and not any(name in environ for name in _CHOSEN_BY_USER):
        environ["GOMP_SPINCOUNT"] = "1000"
