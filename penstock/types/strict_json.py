"""JSON as its standard has it, which Python's reader is not by itself."""

from __future__ import annotations

import json
from typing import Any


def loads_strict(text: str) -> Any:
    """Without NaN and infinities. Raises ValueError, and RecursionError for what is nested too deeply."""
    return json.loads(text, parse_constant=_refuse)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
