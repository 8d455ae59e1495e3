"""The attacks of scripts/reliability, for tests: small here, whole in scripts/measure_reliability.py."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))


def keeps(attack):
    """Run an attack to its end; nothing that was promised may be broken. Answers what came back."""
    outcome = asyncio.run(attack)
    assert not outcome.broken, outcome.broken[:5]
    assert outcome.number
    return outcome
