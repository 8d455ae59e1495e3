"""LocalExecutor with a fake runner: order, late masks, death and stop, always without a stuck caller."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from executor_fixtures import tiny_spec

from penstock.errors import ConfigError, EngineDeadError
from penstock.executor.load import LoadedExecutor
from penstock.executor.local import LocalExecutor
from penstock.types.control import CheckIntegrity, ResetPrefixCache
from penstock.types.kv import KvCapacity, KvGroupSpec, Visibility
from penstock.types.plan import StepPlan
from penstock.types.result import StepResult

GROUP = KvGroupSpec(name="full", visibility=Visibility.ALL, entries_per_block=16, bytes_per_block=64)
CAPACITY = KvCapacity(groups=(GROUP,), num_blocks=(10,))


class FakeRunner:
    """Answers with the masks it was given; step 13 raises; ``gate`` holds every step back."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.masks: object = None

    def run(self, plan: StepPlan, wait_for_masks: Callable[[], object]) -> StepResult:
        self.gate.wait()
        self.seen.append(plan.step_id)
        if plan.step_id == 13:
            raise RuntimeError("out of luck")
        if plan.masked_rows:
            self.masks = wait_for_masks()
        return StepResult(step_id=plan.step_id)


def start(runner: FakeRunner) -> LocalExecutor:
    executor = LocalExecutor(
        tiny_spec(Path("unused")), load=lambda spec: LoadedExecutor(runner=runner, capacity=CAPACITY)
    )
    assert executor.health() != ""
    assert executor.start() == CAPACITY
    assert executor.health() == ""
    return executor


def test_steps_return_at_once_and_run_in_order() -> None:
    runner = FakeRunner()
    executor = start(runner)
    runner.gate.clear()
    handles = [executor.step(StepPlan(step_id=i)) for i in range(5)]
    assert not any(handle.done() for handle in handles)
    runner.gate.set()
    assert [handle.result().step_id for handle in handles] == list(range(5))
    assert all(handle.done() for handle in handles)
    assert runner.seen == list(range(5))
    assert executor.control(ResetPrefixCache()).ok
    assert executor.control(CheckIntegrity()).ok
    executor.stop()


@pytest.mark.parametrize("early", [True, False])
def test_masks_reach_the_sampler_whenever_they_come(early: bool) -> None:
    runner = FakeRunner()
    executor = start(runner)
    if early:
        runner.gate.clear()
    handle = executor.step(StepPlan(step_id=1, row_seats=(0, 1), masked_rows=(0, 1)))
    assert not handle.done()
    handle.masks([1, 0, 1], [b"a", b"b", b"c"])
    runner.gate.set()
    handle.result()
    assert runner.masks == {0: [b"b"], 1: [b"a", b"c"]}
    executor.stop()


def test_a_failing_step_kills_the_executor_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner()
    executor = start(runner)
    runner.gate.clear()
    handles = [executor.step(StepPlan(step_id=i)) for i in (12, 13, 14)]
    runner.gate.set()
    assert handles[0].result().step_id == 12
    for handle in handles[1:]:
        with pytest.raises(EngineDeadError, match="step 13: RuntimeError: out of luck") as raised:
            handle.result()
        assert isinstance(raised.value.__cause__, RuntimeError)
    (record,) = [record for record in caplog.records if record.name == "penstock.executor.local"]
    assert record.exc_info is not None
    assert "in run" in "".join(traceback.format_exception(*record.exc_info))  # where it happened
    with pytest.raises(EngineDeadError, match="out of luck"):
        executor.step(StepPlan(step_id=15)).result()
    assert "out of luck" in executor.health()
    assert not executor.control(CheckIntegrity()).ok
    assert runner.seen == [12, 13]
    executor.stop()
    executor.stop()
    assert "out of luck" in executor.health()


def test_stop_answers_everyone_who_waits() -> None:
    """A step that waits for masks, one behind it, and a thread inside ``result``."""
    runner = FakeRunner()
    executor = start(runner)
    waiting = executor.step(StepPlan(step_id=1, row_seats=(0,), masked_rows=(0,)))
    behind = executor.step(StepPlan(step_id=2))
    failures: list[str] = []

    def wait() -> None:
        try:
            waiting.result()
        except EngineDeadError as error:
            failures.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    executor.stop()
    thread.join()
    assert failures == ["The executor was stopped."]
    with pytest.raises(EngineDeadError, match="stopped"):
        behind.result()
    with pytest.raises(EngineDeadError, match="stopped"):
        executor.step(StepPlan(step_id=3)).result()
    executor.stop()


def test_an_error_at_start_reaches_the_caller_as_it_is() -> None:
    def load(spec: object) -> LoadedExecutor:
        raise ConfigError("--block-size is 7.")

    executor = LocalExecutor(tiny_spec(Path("unused")), load=load)
    with pytest.raises(ConfigError, match="--block-size is 7"):
        executor.start()
    assert executor.health() != ""
    with pytest.raises(EngineDeadError, match="not started"):
        executor.step(StepPlan(step_id=1)).result()
    executor.stop()


def test_stop_before_start_is_harmless() -> None:
    executor = LocalExecutor(tiny_spec(Path("unused")))
    executor.stop()
    executor.stop()
