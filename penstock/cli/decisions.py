"""Decisions and sizes as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.types.decision import Decision

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def decision_lines(decisions: Sequence[Decision]) -> list[str]:
    """One line per decision, followed by the refused candidates with every reason."""
    lines = []
    for decision in decisions:
        others = f"; also possible: {', '.join(decision.also_possible)}" if decision.also_possible else ""
        lines.append(f"  {decision.subject}: {decision.chosen or 'nothing'} ({decision.why}{others})")
        for rejection in decision.rejected:
            lines.append(f"      not {rejection.name}: {'; '.join(rejection.reasons)}")
    return lines


def size_text(size: int) -> str:
    """Bytes with three digits or so: 1536 -> "1.50 KiB"."""
    value, unit = float(size), _UNITS[0]
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    if unit == "B":
        return f"{size} B"
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"
