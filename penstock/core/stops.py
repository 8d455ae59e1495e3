"""When a request has produced enough. Knows tokens and limits, no text: stop strings are the frontend's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.core.requests import RequestState
from penstock.types.output import FinishReason


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a request ended by itself. A stop token is part of the output."""

    reason: FinishReason
    token_id: int | None = None


_LENGTH = Stop(FinishReason.LENGTH)
COMPLETE = Stop(FinishReason.STOP)
"""An answer that its constraint lets end only here, without an end token."""


def accept_tokens(request: RequestState, tokens: Sequence[int]) -> tuple[int, Stop | None]:
    """Append sampled tokens up to the first stop. Returns how many were kept, and the stop.

    A stop token counts only once ``min_tokens`` tokens precede it, as the sampler also sees it.
    """
    known = request.tokens
    stop_ids = request.stop_ids
    for kept, token in enumerate(tokens, 1):
        known.append(token)
        if token in stop_ids and len(known) > request.min_known:
            return kept, Stop(FinishReason.STOP, token)
        if len(known) >= request.max_known:
            return kept, _LENGTH
    return len(tokens), None


def length_stop(request: RequestState) -> Stop | None:
    """The stop of a request that may produce no token at all, once its whole prompt is computed."""
    if len(request.tokens) >= request.max_known and request.computed >= request.num_prompt:
        return _LENGTH
    return None
