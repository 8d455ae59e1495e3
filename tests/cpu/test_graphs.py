"""Recorded decode steps: the bits of eager ones, whatever happens between them, and a reason where there are none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from penstock.executor.graphs import MAX_TRIALS, GraphKey, GraphRefusedError, StepGraphs, Variant
from penstock.executor.inputs import StepShape
from penstock.types.control import KernelTime


class FakeRecorder:
    """Computes at once. Nothing can be recorded while ``refused`` answers a reason."""

    name = "fake"

    def __init__(self, refused: Callable[[], str] = lambda: "") -> None:
        self.recorded = 0
        self._refused = refused

    def record(self, compute: Callable[[], Any], /) -> tuple[FakeRecorded, Any]:
        if self._refused():
            raise GraphRefusedError(self._refused())
        self.recorded += 1
        return FakeRecorded(), compute()


class FakeRecorded:
    def __init__(self) -> None:
        self.runs = 0

    def __len__(self) -> int:
        return 2

    def run(self) -> None:
        self.runs += 1

    def run_timed(self) -> list[tuple[str, int]]:
        self.run()
        return [("a", 3), ("b", 5), ("a", 4)]


def key(rows: int, variant: str = "greedy") -> GraphKey:
    return GraphKey(StepShape(rows, rows, rows), Variant(variant))


def run(graphs: StepGraphs, rows: int, variant: str = "greedy") -> str:
    return graphs.run(key(rows, variant), lambda: f"recorded {rows} {variant}", lambda: "eager")


def test_a_shape_is_recorded_once_and_run_every_time() -> None:
    recorder = FakeRecorder()
    graphs = StepGraphs(recorder)
    assert [run(graphs, rows) for rows in (1, 2, 1, 2)] == ["recorded 1 greedy", "recorded 2 greedy"] * 2
    assert run(graphs, 1, "logits") == "recorded 1 logits"
    assert recorder.recorded == len(graphs) == 3
    assert graphs.decision().chosen == "graphs"
    graphs.forget()
    assert len(graphs) == 0
    run(graphs, 1)
    assert recorder.recorded == 4


def test_the_shape_that_was_not_used_for_longest_goes_first() -> None:
    recorder = FakeRecorder()
    graphs = StepGraphs(recorder, max_graphs=2)
    for rows in (1, 2, 1, 3, 1, 2):
        run(graphs, rows)
    assert recorder.recorded == 4  # the second 2 again
    assert len(graphs) == 2


def test_a_refusal_is_eager_logged_once_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    reason = ""
    graphs = StepGraphs(FakeRecorder(lambda: reason))
    run(graphs, 7)
    reason = "aten.add is in the way"
    with caplog.at_level(logging.INFO, "penstock"):
        assert [run(graphs, rows) for rows in (1, 2, 1)] == ["eager"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "steps like StepShape(num_tokens=1, num_rows=1, num_asked=1), greedy run eagerly: aten.add is in the way"
    ]
    assert graphs.decision().chosen == "graphs"
    assert graphs.decision().rejected[0].reasons == (reason,)
    reason = ""
    assert run(graphs, 1) == "eager"  # it is not tried again and again
    graphs.forget()
    assert run(graphs, 1) == "recorded 1 greedy"


def test_a_model_that_cannot_be_recorded_is_not_tried_for_every_shape() -> None:
    tried = []
    graphs = StepGraphs(FakeRecorder(lambda: tried.append(1) or "no"))
    for rows in range(1, 50):
        assert run(graphs, rows) == "eager"
    assert len(tried) == 2 * MAX_TRIALS  # the fake asks twice for each
    assert graphs.decision().chosen == "eager"


def test_without_a_recorder_the_reason_is_the_decision() -> None:
    graphs = StepGraphs(None, "turned off by --no-graphs")
    assert run(graphs, 1) == "eager"
    assert (graphs.decision().chosen, graphs.decision().why) == ("eager", "turned off by --no-graphs")


def test_kernel_times_are_medians_of_steps_by_name() -> None:
    graphs = StepGraphs(FakeRecorder())
    run(graphs, 1)
    graphs.timing = True
    run(graphs, 1)
    run(graphs, 1)
    assert graphs.take_kernel_times() == (KernelTime("a", 1, 2, 2, 7e-9), KernelTime("b", 1, 2, 1, 5e-9))
    assert graphs.take_kernel_times() == ()
