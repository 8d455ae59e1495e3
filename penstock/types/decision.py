"""Verdicts and decisions: why a thing was chosen, and every reason why another was not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """A candidate's answer. Empty ``reasons`` mean yes; a no lists every reason, each as a fact."""

    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.reasons


YES = Verdict()


@dataclass(frozen=True, slots=True)
class Rejection:
    name: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of a ladder: for up to ``max_rows`` rows (None: for any number) ``name`` computes, for the reason
    ``why``."""

    max_rows: int | None
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of one selection. ``chosen`` is None when nobody could run.

    ``why`` says on what ground the chosen one won: "named by --attention-backend", "the only one that can run", or
    "first of 3 that can run" with the measurement behind its place in the table. What was chosen may be a ladder, whose
    ``rungs`` stand in the order of their rows.
    """

    subject: str  # what was decided, e.g. "attention", "linear q4_1 576x576", "dtype"
    chosen: str | None
    why: str
    rejected: tuple[Rejection, ...] = ()
    also_possible: tuple[str, ...] = ()
    rungs: tuple[Rung, ...] = ()
