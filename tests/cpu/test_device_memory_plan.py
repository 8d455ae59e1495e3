"""The memory that a device's plan counts beside weights, KV and the forward: it is what the parts allocate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from executor_fixtures import PlanMaker, random_prompt, save_tiny_model, tiny_spec
from test_device_runner import Start, directory, runner_of, start  # noqa: F401

from penstock.executor import load
from penstock.executor.device_edits import edit_bytes
from penstock.executor.device_inputs import DeviceInputs, input_bytes, table_bytes
from penstock.executor.device_logprobs import described_bytes
from penstock.executor.device_masks import mask_bytes
from penstock.executor.device_memory import RESERVE_BYTES, DeviceMemory
from penstock.executor.seats import SeatState
from penstock.loader.checkpoint import open_checkpoint
from penstock.platforms.recorded import RECORDED
from penstock.types.kv import KvGroupSpec, Visibility

SEEN = DeviceMemory(step=1 << 20, free=64 << 30)  # by the largest step
Planned = Callable[..., Any]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("gemma3")
    save_tiny_model("gemma3", path)
    return path


@pytest.fixture
def planned(gemma: Path) -> Planned:
    """(spec, plan) as for a card."""

    def make(**changes: Any) -> Any:
        fields = {"platform": RECORDED["h200"], "dtype": "bfloat16", "kv_cache_dtype": "auto", "kv_cache_memory": None}
        spec = tiny_spec(gemma, **(fields | changes))
        return spec, load.plan_executor(spec, open_checkpoint(spec.source))

    return make


def test_inputs_take_what_is_planned() -> None:
    groups = tuple(
        KvGroupSpec(name=str(tokens), visibility=Visibility.ALL, entries_per_block=tokens, bytes_per_block=1)
        for tokens in (16, 64)
    )
    for budget in (3, 500):  # of tokens, on both sides of the seats
        inputs = DeviceInputs(SeatState(9, 1000, groups), 9, budget, (0, 0), 2, torch.device("cpu"))
        tables = sum(table.nbytes for table in inputs._tables)
        assert tables == table_bytes(9, 1000, groups)
        assert inputs._words.nbytes + tables == input_bytes(9, budget, 1000, groups)


def test_an_eager_step_gathers_the_blocks_of_its_longest_row(start: Start) -> None:  # noqa: F811
    executor, maker = start(attention_backend="reference_torch", block_size=16, max_model_len=4096)
    runner = runner_of(executor)
    seen: list[int] = []
    views = runner._inputs.views

    def look(*given: Any) -> Any:
        step = views(*given)
        seen.append(step.forward.groups[0].block_table.untyped_storage().nbytes())
        return step

    runner._inputs.views = look  # type: ignore[method-assign]
    maker.admit(0, random_prompt(40))
    maker.admit(1, random_prompt(5))
    executor.step(maker.plan([(0, 40, True), (1, 5, True)])).result()
    assert seen == [2 * 3 * 8]


def test_what_a_device_takes_for_requests_is_counted(planned: Planned) -> None:
    """Recorded steps and eager ones hold memory of their own."""
    spec, plan = planned()
    groups = load.group_specs(plan.built, spec.block_size)
    rows, vocab = spec.max_num_seqs, plan.built.facts.vocab_size
    tables, described = table_bytes(rows, spec.max_model_len, groups), described_bytes(rows, vocab)
    inputs = input_bytes(rows, spec.max_num_batched_tokens, spec.max_model_len, groups)
    lasting = load.lasting_bytes(plan.built, spec)
    assert lasting == inputs + tables + described + edit_bytes(rows, vocab) + mask_bytes(rows, vocab)
    assert load.graph_bytes(plan.built, spec) == rows * vocab * (2 + 4) + described + tables
    eager_spec, eager = planned(graphs=False)
    assert load.graph_bytes(eager.built, eager_spec) == 0
    assert plan.memory.activation_bytes - eager.memory.activation_bytes == load.graph_bytes(plan.built, spec)
    without = load.activation_bytes(plan.built, tiny_spec(Path(), dtype="bfloat16"))
    assert load.activation_bytes(plan.built, spec) == without + lasting


@pytest.mark.parametrize("changes", [{}, {"graphs": False}, {"attention_backend": "cuda_sdpa"}], ids=str)
def test_nothing_is_kept_for_recorded_steps_where_none_is(
    planned: Planned, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    spec, plan = planned(**changes)
    monkeypatch.setattr(load, "compile_kernels", lambda *_, **__: None)
    monkeypatch.setattr(load, "measure_step", lambda *_, **__: SEEN)
    over: Any = lambda *_: (None, None)  # noqa: E731
    memory = load._measured_plan(spec, plan, over, None, lambda: None, torch.device("cpu"), lambda *_: None)
    recorded = 0 if changes else int(SEEN.step * spec.max_num_seqs / spec.max_num_batched_tokens)
    recorded += load.graph_bytes(plan.built, spec)
    assert (recorded == 0) == bool(changes)
    expected = int(SEEN.step * load.STEP_MARGIN) + recorded + load.lasting_bytes(plan.built, spec) + RESERVE_BYTES
    assert memory.activation_bytes == expected
    for lines in (memory.lines, plan.memory.lines):
        assert ("for recorded ones" in "\n".join(lines)) == (not changes)


def test_the_tables_of_a_start_are_those_that_were_planned(start: Start) -> None:  # noqa: F811
    executor, maker = start()
    assert isinstance(maker, PlanMaker)
    inputs = runner_of(executor)._inputs
    held = inputs._words.nbytes + sum(table.nbytes for table in inputs._tables)
    assert held == input_bytes(6, 128, 256, maker.capacity.groups)
