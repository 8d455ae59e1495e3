"""The one way to select an implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from penstock.errors import NoBackendError
from penstock.types.decision import Decision, Rejection, Verdict

R_contra = TypeVar("R_contra", contravariant=True)
R = TypeVar("R")
C = TypeVar("C", bound="Candidate[object]")


class Candidate(Protocol[R_contra]):
    """Something that can be selected. ``can_run`` is cheap and free of side effects: it reads facts and shapes,
    allocates nothing, imports nothing heavy."""

    @property
    def name(self) -> str: ...

    def can_run(self, request: R_contra, /) -> Verdict: ...


def choose(
    subject: str,
    request: R,
    candidates: Sequence[Candidate[R]],
    *,
    forced: str | None = None,
    forced_by: str = "",
    grounds: Mapping[str, str] | None = None,
) -> tuple[Candidate[R], Decision]:
    """Ask all candidates in table order and take the first yes; return it with the Decision.

    ``forced`` names the only acceptable candidate (``forced_by`` says where the name came from, for example
    "--attention-backend"): it runs or it is an error. ``grounds`` stands next to the table and says, by candidate, what
    its place rests on: a measurement, or the reason why there is none; it becomes part of the Decision's ``why``.
    Raises NoBackendError, carrying the Decision, when the named one refuses, is unknown, or nobody can run.
    """
    verdicts = [(candidate, candidate.can_run(request)) for candidate in candidates]
    willing = [candidate for candidate, verdict in verdicts if verdict.ok]
    rejected = tuple(Rejection(c.name, v.reasons) for c, v in verdicts if not v.ok)
    if forced is None:
        chosen = willing[0] if willing else None
        why = _why_first([c.name for c in willing], grounds or {})
    else:
        chosen = next((c for c in willing if c.name == forced), None)
        why = f"named by {forced_by or 'the user'}"
    others = tuple(c.name for c in willing if c is not chosen)
    if chosen is not None:
        return chosen, Decision(subject, chosen.name, why, rejected, others)
    decision = Decision(subject, None, why if forced else "no candidate can run", rejected, others)
    raise NoBackendError(_refusal(subject, forced, decision, [c.name for c in candidates]), decision=decision)


def _why_first(willing: list[str], grounds: Mapping[str, str]) -> str:
    if len(willing) == 1:
        return "the only one that can run"
    ground = grounds.get(willing[0], "in table order") if willing else ""
    return f"first of {len(willing)} that can run: {ground}"


def _refusal(subject: str, forced: str | None, decision: Decision, names: list[str]) -> str:
    if forced is not None and forced not in names:
        return f"{subject}: there is no candidate named {forced!r}; choose one of {', '.join(names)}."
    refused = [r for r in decision.rejected if forced is None or r.name == forced]
    lines = [f"  {r.name}: {'; '.join(r.reasons)}" for r in refused]
    head = f"{subject}: {forced} cannot run" if forced else f"{subject}: no candidate can run"
    return "\n".join([f"{head}.", *lines])
