"""Decisions as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.types.decision import Decision


def decision_lines(decisions: Sequence[Decision]) -> list[str]:
    """One line per decision, followed by the refused candidates with every reason."""
    lines = []
    for decision in decisions:
        others = f"; also possible: {', '.join(decision.also_possible)}" if decision.also_possible else ""
        lines.append(f"  {decision.subject}: {decision.chosen or 'nothing'} ({decision.why}{others})")
        for rejection in decision.rejected:
            lines.append(f"      not {rejection.name}: {'; '.join(rejection.reasons)}")
    return lines
