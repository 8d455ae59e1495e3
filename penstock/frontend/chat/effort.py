"""How much a model shall think: request fields as variables of its chat template. Knows no template by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from penstock.errors import InvalidRequestError

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# Names that templates use for one thing, with what turns it off and on.
_SWITCHES = {"enable_thinking": (False, True), "thinking": (False, True), "thinking_mode": ("disabled", "enabled")}


def effort_variables(effort: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Variables for ``reasoning_effort``; what ``chat_template_kwargs`` gives wins. Raises InvalidRequestError."""
    if effort is None:
        return dict(given)
    if effort not in EFFORTS:
        raise InvalidRequestError(
            f"reasoning_effort must be one of {', '.join(EFFORTS)}, got {effort[:64]!r}.", param="reasoning_effort"
        )
    switches = thinking_switches(effort != "none")
    if any(name in given for name in _SWITCHES):
        switches = {}
    return {"reasoning_effort": effort, **switches, **given}


def thinking_switches(on: bool) -> dict[str, Any]:
    """Variables with which templates turn thinking on or off, under every name that there is for it."""
    return {name: values[on] for name, values in _SWITCHES.items()}


def knows_effort(templates: Iterable[str]) -> bool:
    """Whether a template looks at any of the variables; where none does, asking for an effort changes nothing."""
    return any(name in source for source in templates for name in ("reasoning_effort", *_SWITCHES))
