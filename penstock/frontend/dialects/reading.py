"""How an answer is read, from the dialect that was selected and the request. Loads no dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.frontend.dialects.contract import Dialect, Reading


def make_reading(
    dialect: Dialect | None,
    prompt: str,
    *,
    tools: Mapping[str, Mapping[str, Any]],
    max_calls: int | None = None,
    prefill: str | None = None,
) -> Reading | None:
    """How to read an answer to ``prompt``; None when nothing but content can come, so that no machine is needed.

    ``prefill`` is the beginning of the answer when the prompt already contains it.
    """
    if dialect is None:
        return None
    reasoning = dialect.reasoning
    tail = prompt.rstrip()
    in_reasoning = reads_reasoning = False
    if reasoning is not None:
        in_reasoning = reasoning.left_open(prefill) if prefill is not None else tail.endswith(reasoning.begin)
        was_closed = prefill is not None or tail.endswith(reasoning.end)
        reads_reasoning = in_reasoning or not was_closed
    calls = tools if dialect.reads_calls else {}
    if not calls and not reads_reasoning and dialect.read is None:
        return None
    return Reading(tools=calls, in_reasoning=in_reasoning, reads_reasoning=reads_reasoning, max_calls=max_calls)
