"""A DeviceRunner where it may go wrong on a card: late masks, rows without a token, memory that is written again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from executor_fixtures import GREEDY, VOCAB, PlanMaker, random_prompt, run_alone, save_tiny_model, tiny_spec

from penstock.errors import EngineDeadError
from penstock.executor.device_inputs import DeviceInputs
from penstock.executor.device_runner import DeviceRunner
from penstock.executor.graphs import StepGraphs
from penstock.executor.load import load_executor
from penstock.executor.local import LocalExecutor
from penstock.executor.seats import SeatState
from penstock.kernels import reference
from penstock.types.decision import Decision
from penstock.types.kv import KvGroupSpec, Visibility
from penstock.types.plan import Admission, StepPlan
from penstock.types.request import SamplingParams

Start = Callable[..., tuple[LocalExecutor, PlanMaker]]
RANDOM = SamplingParams(temperature=1.0, seed=3)
CAREFUL = SamplingParams(temperature=0.0, bad_token_ids=((3, 4),))  # which the host alone can keep from being completed


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("llama")
    save_tiny_model("llama", directory)
    return directory


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    started: list[LocalExecutor] = []

    def make(**changes: Any) -> tuple[LocalExecutor, PlanMaker]:
        spec = tiny_spec(directory, **{"graphs": False, **changes})
        started.append(LocalExecutor(spec, load=partial(load_executor, launches=True), launches=True))
        return started[-1], PlanMaker(started[-1].start())

    yield make
    for executor in started:
        executor.stop()


def runner_of(executor: LocalExecutor) -> DeviceRunner:
    assert executor._loaded is not None
    assert isinstance(executor._loaded.runner, DeviceRunner)
    return executor._loaded.runner


def only(token: int) -> bytes:
    return (1 << token).to_bytes(4 * (VOCAB // 32 + 1), "little")


def test_plans_behind_a_masked_one_wait_for_its_masks(start: Start) -> None:
    executor, maker = start(depth=3)
    maker.admit(0, random_prompt(12))
    masked = executor.step(maker.plan([(0, 12, True)], masked_rows=(0,)))
    behind = [executor.step(maker.plan([(0, 1, True)])) for _ in range(2)]
    masked.masks([0], [only(17)])
    after = executor.step(maker.plan([(0, 1, True)]))
    assert all(handle.pending is not None for handle in (*behind, after)), "what may be launched is"
    assert masked.result().row_tokens == ((17,),)
    tokens = [handle.result().row_tokens[0][0] for handle in (*behind, after)]
    maker.drop(0)
    assert tokens == run_alone(executor, maker, 1, (*random_prompt(12), 17), 3)


def test_masks_that_never_come_are_no_answer_without_them(start: Start) -> None:
    executor, maker = start()
    maker.admit(0, random_prompt(12))
    masked = executor.step(maker.plan([(0, 12, True)], masked_rows=(0,)))
    with pytest.raises(EngineDeadError, match="masks of step 1 were not delivered"):
        masked.result()


def test_a_row_without_a_token_does_not_end_the_step_that_is_planned_behind_it(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next row is on its way, in a step whose tokens come from the host because of a neighbour."""

    def sample(logits: torch.Tensor, *cuts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, finite = reference.sample(logits, *cuts)
        return torch.full_like(tokens, -1), torch.zeros_like(finite)

    found = (sample, Decision("op sample float32", "broken", "the test's"))
    monkeypatch.setattr("penstock.executor.load.choose_sample_op", lambda platform: found)
    executor, maker = start()
    prompts = [random_prompt(12, seed=1), random_prompt(9, seed=2)]
    maker.admit(0, prompts[0], RANDOM)
    broken = executor.step(maker.plan([(0, 12, True)]))
    maker.admit(1, prompts[1], CAREFUL)
    behind = executor.step(maker.plan([(0, 1, True), (1, 9, True)]))
    assert list(broken.result().failed_rows) == [0]
    tokens = list(behind.result().row_tokens[1])
    maker.drop(0)
    tokens += [executor.step(maker.plan([(1, 1, True)])).result().row_tokens[0][0] for _ in range(3)]
    maker.drop(1)
    assert tokens == run_alone(executor, maker, 2, prompts[1], 4, sampling=CAREFUL)


class CountingEvent:
    """As an event of a device that has finished nothing yet."""

    def __init__(self) -> None:
        self.recorded = self.waited = 0

    def record(self) -> None:
        self.recorded += 1

    def query(self) -> bool:
        return self.waited == self.recorded

    def synchronize(self) -> None:
        self.waited = self.recorded


@pytest.mark.parametrize("sampling", [GREEDY, CAREFUL, SamplingParams(prompt_logprobs=0)])
def test_every_finished_step_has_been_waited_for(start: Start, sampling: SamplingParams) -> None:
    """Also chunks that sample nothing, whoever samples in the end: else their inputs, which a device may not have read,
    are written again."""
    executor, maker = start(depth=2)
    ring = runner_of(executor)._answers
    events = [CountingEvent() for _ in ring._places]
    ring._places = [(*place[:2], event, *place[3:]) for place, event in zip(ring._places, events, strict=True)]
    maker.admit(0, random_prompt(80), sampling)
    handles = [executor.step(maker.plan([(0, 10, False)])) for _ in range(7)]
    assert sum(event.recorded for event in events) == 7
    assert sum(not event.query() for event in events) <= 2
    for handle in handles:
        handle.result()
    assert all(event.query() for event in events)


def test_a_place_of_a_table_that_changes_twice_is_sent_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy by index with repeated places may end with any of their values."""
    group = KvGroupSpec(name="full", visibility=Visibility.ALL, entries_per_block=16, bytes_per_block=1)
    seats = SeatState(2, 64, (group,), journal=True)
    inputs = DeviceInputs(seats, 2, 16, (0,), 2, torch.device("cpu"))
    for blocks in ((5, 6, 7), (8, 9)):  # the seat is given away again before any row is computed
        admission = Admission(
            seat=1,
            request_id=1,
            token_ids=(3,) * 20,
            num_prompt_tokens=20,
            num_computed=0,
            sampling=GREEDY,
            block_ids=(blocks,),
            first_block=(0,),
        )
        seats.apply(StepPlan(step_id=1, dropped=(1,), admitted=(admission,)))
    copied: list[tuple[torch.Tensor, torch.Tensor]] = []
    copy = torch.Tensor.index_copy_
    monkeypatch.setattr(
        torch.Tensor, "index_copy_", lambda one, dim, at, of: (copied.append((at, of)), copy(one, dim, at, of))[1]
    )
    inputs.send_tables()
    ((at, values),) = copied
    assert len({*zip(at.tolist(), values.tolist(), strict=True)}) == len({*at.tolist()})
    assert inputs._tables[0][1, :2].tolist() == [8, 9]


class Again:
    """Implements ``graphs.Recorder``: repeats what it was given, over inputs of the shapes that it was given for."""

    name = "again"

    def record(self, compute: Callable[[], Any], /) -> tuple[Any, Any]:
        answer = compute()

        class Recorded:
            def __len__(self) -> int:
                return 1

            def run(self) -> None:
                for kept, new in zip(answer, compute(), strict=True):
                    kept.copy_(new)

            def run_timed(self) -> list[tuple[str, int]]:
                self.run()
                return []

        return Recorded(), answer


def test_more_seats_than_tokens_of_a_step(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode steps are filled up to row counts that no step of that many tokens has."""
    monkeypatch.setattr("penstock.executor.load.make_graphs", lambda built, spec: StepGraphs(Again()))
    executor, maker = start(max_num_seqs=8, max_num_batched_tokens=5)
    prompts = [random_prompt(1, seed=seed) for seed in range(5)]
    for seat, prompt in enumerate(prompts):
        maker.admit(seat, prompt)
    tokens: list[list[int]] = [[] for _ in prompts]
    for _ in range(4):
        result = executor.step(maker.plan([(seat, 1, True) for seat in range(5)])).result()
        for one, new in zip(tokens, result.row_tokens, strict=True):
            one += new
    for seat, prompt in enumerate(prompts):
        assert tokens[seat] == run_alone(executor, maker, 5, prompt, 4)


def test_stop_while_steps_are_in_flight(start: Start) -> None:
    executor, maker = start(depth=2)
    maker.admit(0, random_prompt(12))
    handles = [executor.step(maker.plan([(0, count, True)])) for count in (12, 1)]
    executor.stop()
    for handle in handles:
        assert handle.done()
        with pytest.raises(EngineDeadError, match="stopped"):
            handle.result()
    executor.stop()


def test_steps_that_draw_are_recorded_without_work_one_at_a_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.executor.load.make_graphs", lambda built, spec: StepGraphs(Again()))
    executor, maker = start(max_num_seqs=6)
    graphs = runner_of(executor).graphs
    met = len(graphs)  # greedy ones, and the one of one row that every start computes
    maker.admit(0, random_prompt(12), sampling=RANDOM)
    executor.step(maker.plan([(0, 12, True)])).result()
    first = executor.step(maker.plan([(0, 1, True)])).result().row_tokens
    sizes = []
    while executor.idle():
        sizes.append(len(graphs))
    assert sizes == [met + 1, met + 2, met + 3], "of 6, 4 and 2 rows"
    second = executor.step(maker.plan([(0, 1, True)])).result().row_tokens
    maker.drop(0)
    again = run_alone(executor, maker, 1, random_prompt(12), 3, sampling=RANDOM)
    assert again[1:] == [first[0][0], second[0][0]]
    assert len(graphs) == sizes[-1]


def test_a_device_that_fails_without_work_ends_the_executor(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, maker = start()

    def fails(self: DeviceRunner) -> bool:
        raise RuntimeError("device lost")

    monkeypatch.setattr(DeviceRunner, "record_one", fails)
    assert executor.idle() is False
    assert executor.health() == "The executor failed without a step: RuntimeError: device lost"
    maker.admit(0, random_prompt(12))
    with pytest.raises(EngineDeadError, match="device lost"):
        executor.step(maker.plan([(0, 12, True)])).result()
