"""Sizes in bytes as people write and read them. Knows no flag."""

from __future__ import annotations

import re
from typing import Any

from penstock.errors import ConfigError

_FACTORS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*", re.IGNORECASE)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def parse_size(given: Any, name: str = "size") -> int:
    """Bytes from an integer or from text: "4GiB" and "4G" are 4 * 2**30, "4GB" is 4 * 10**9."""
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    match = _SIZE.fullmatch(given) if isinstance(given, str) else None
    if match is None:
        raise ConfigError(f"{name} is {given!r}, but it must be a number of bytes or a size such as 512MiB or 4GiB.")
    number, unit, suffix = match.groups()
    factor = (1000 if (suffix or "").lower() == "b" and unit else 1024) ** _FACTORS[unit.lower()]
    return int(float(number) * factor) if "." in number else int(number) * factor


def size_text(num_bytes: int) -> str:
    """The largest binary unit of which there is at least one: 1536 -> "1.50 KiB"."""
    value, units = float(num_bytes), list(_UNITS)
    while abs(value) >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{num_bytes} B" if units[0] == "B" else f"{value:.2f} {units[0]}"
