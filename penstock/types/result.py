"""StepResult: all that an executor answers for one step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: the chosen token first, then the most likely ones in falling order.

    The chosen token comes a second time, at its place, when it is one of the most likely ones: n alternatives asked are
    1 + n entries. ``rank`` is the 1-based rank of the chosen token in the whole vocabulary. Natural logarithms of the
    model's own distribution, before temperature, penalties and truncation.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    rank: int


@dataclass(frozen=True, slots=True)
class RowFailure:
    """Why a row has no token, as a sentence. ``by_request``: what the request asks for excludes every answer; else the
    model or the engine is to blame."""

    message: str
    by_request: bool = False


@dataclass(frozen=True, slots=True)
class StepTimings:
    """Seconds on the executor's clock; ``started`` and ``ended`` are ``time.monotonic()`` values.

    ``inputs_s`` is the time from the plan to the inputs of the forward, ``forward_s`` that from the inputs to the
    logits (or to their argmax, when nothing else is asked), ``sample_s`` that from there to the result.
    """

    started: float = 0.0
    ended: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    inputs_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The answer to the StepPlan of the same ``step_id``; ``row_tokens[r]`` belongs to row r of that plan.

    ``failed_rows`` maps a row to why it failed (for example: logits are not finite); the others are valid.
    ``prompt_logprobs[r]`` has one entry per prompt position that row r predicted in this step: the entry for
    position p describes prompt token p given those before it, so position 0 never has one.
    """

    step_id: int
    row_tokens: tuple[tuple[int, ...], ...] = ()
    logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    failed_rows: dict[int, RowFailure] = field(default_factory=dict)
    finished_transfers: tuple[tuple[int, bool], ...] = ()  # (job_id, ok)
    timings: StepTimings = StepTimings()
