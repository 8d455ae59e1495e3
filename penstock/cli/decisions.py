"""Decisions as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.types.decision import Decision


def decision_lines(decisions: Sequence[Decision]) -> list[str]:
    """One line per decision, followed by the rungs of a ladder and by the refused candidates with every reason."""
    lines = []
    for decision in decisions:
        others = f"; also possible: {', '.join(decision.also_possible)}" if decision.also_possible else ""
        lines.append(f"  {decision.subject}: {decision.chosen or 'nothing'} ({decision.why}{others})")
        for rung in decision.rungs:
            reach = "any number of rows" if rung.max_rows is None else f"up to {rung.max_rows} rows"
            lines.append(f"      {reach}: {rung.name} ({rung.why})")
        for rejection in decision.rejected:
            lines.append(f"      not {rejection.name}: {'; '.join(rejection.reasons)}")
    return lines
