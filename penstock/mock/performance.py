"""How long a mock step takes: a function of its shape. Knows neither requests nor clocks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.types.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepShape:
    """``num_tokens`` counts drafts; ``num_sampled`` rows give tokens; ``context_tokens`` are read by all rows."""

    num_rows: int
    num_tokens: int
    num_sampled: int
    context_tokens: int


Performance = Callable[[StepShape], float]
"""Seconds of one step. Any callable will do; the classes below are the usual ones."""


@dataclass(frozen=True, slots=True)
class FixedDelay:
    """Every step takes the same time; the default of nothing makes the core's own cost visible."""

    seconds: float = 0.0

    def __call__(self, shape: StepShape) -> float:
        return self.seconds


@dataclass(frozen=True, slots=True)
class LinearDelay:
    """A launch cost, plus costs per computed token, per row, and per token of context read."""

    base: float
    per_token: float = 0.0
    per_row: float = 0.0
    per_context_token: float = 0.0

    def __call__(self, shape: StepShape) -> float:
        if not shape.num_rows:
            return 0.0
        computed = self.per_token * shape.num_tokens + self.per_row * shape.num_rows
        return self.base + computed + self.per_context_token * shape.context_tokens


class MeasuredDelay:
    """Measured (tokens per step, seconds) points, joined by straight lines; the ends are continued in proportion."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        if not points:
            raise ValueError("a measured performance table needs at least one point")
        self._points = sorted(points)
        self._tokens = [tokens for tokens, _ in self._points]

    def __call__(self, shape: StepShape) -> float:
        tokens = shape.num_tokens
        if not tokens:
            return 0.0
        high = bisect_left(self._tokens, tokens)
        if high == 0:
            return self._points[0][1]
        if high == len(self._points):
            last_tokens, last_seconds = self._points[-1]
            return last_seconds * tokens / max(1, last_tokens)
        (t0, s0), (t1, s1) = self._points[high - 1], self._points[high]
        return s0 + (s1 - s0) * (tokens - t0) / (t1 - t0)


def shape_of(plan: StepPlan, context_tokens: int) -> StepShape:
    drafts = sum(map(len, plan.row_drafts))
    return StepShape(len(plan.row_seats), sum(plan.row_num_tokens) + drafts, sum(plan.row_samples), context_tokens)
