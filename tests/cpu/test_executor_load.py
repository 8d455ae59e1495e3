"""Planning and loading: nothing is read to explain, refusals name flags, every format and dtype reaches a runner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from executor_fixtures import (
    PLATFORM,
    VOCAB,
    PlanMaker,
    random_prompt,
    run_alone,
    save_tiny_model,
    tiny_config,
    tiny_spec,
)

from penstock.errors import ConfigError, NoBackendError
from penstock.executor.device_runner import DeviceRunner, padded_row_counts
from penstock.executor.load import load_executor, longest_request, plan_executor
from penstock.executor.local import LocalExecutor
from penstock.loader.checkpoint import open_checkpoint
from penstock.loader.weights import load_parameters
from penstock.platforms.recorded import RECORDED
from penstock.types.request import SamplingParams


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_tiny_model("gemma3", path)
    return path


class Unreadable:
    """A checkpoint whose weights may not be read."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "load":
            raise AssertionError("a weight was read")
        return getattr(self._inner, name)


def test_a_plan_reads_no_weight_and_foretells_what_is_loaded(directory: Path) -> None:
    spec = tiny_spec(directory, kv_cache_memory=None, block_size=16)
    plan = plan_executor(spec, Unreadable(open_checkpoint(spec.source)))
    assert {(g.name, g.window, g.entries_per_block) for g in plan.memory.groups} == {
        ("sliding", 20, 16),
        ("full", None, 16),
    }
    subjects = [decision.subject for decision in plan.decisions]
    assert len(subjects) == len(set(subjects))
    assert sum(subject.startswith("attention") for subject in subjects) == 2
    assert any("KV cache" in line for line in plan.lines)

    loaded = load_executor(spec)
    assert loaded.capacity == plan.memory.capacity
    assert loaded.decisions[:-1] == plan.decisions[:-1]
    assert loaded.decisions[-1].subject == plan.decisions[-1].subject == "steps"  # found out while warming up
    assert loaded.lines == plan.lines
    kept = {id(parameter): parameter.nbytes for parameter in plan.built.model.parameters().values()}
    assert plan.weights.prepared_bytes >= sum(kept.values())


def test_the_weight_plan_is_what_the_parameters_hold(directory: Path) -> None:
    spec = tiny_spec(directory)
    plan = plan_executor(spec, open_checkpoint(spec.source))
    parameters = plan.built.model.parameters()
    load_parameters(plan.built.family.WEIGHTS, plan.built.facts.num_layers, open_checkpoint(spec.source), parameters)
    held = {id(parameter): parameter.nbytes for parameter in parameters.values()}
    assert sum(held.values()) == plan.weights.prepared_bytes


def test_block_sizes_are_those_of_the_backend(directory: Path) -> None:
    spec = tiny_spec(directory, block_size=7)
    with pytest.raises(ConfigError, match="--block-size is 7, but cpu_native takes blocks of"):
        plan_executor(spec, open_checkpoint(spec.source))


def test_named_backends_never_fall_back(directory: Path) -> None:
    for flag in ("attention_backend", "linear_backend"):
        spec = tiny_spec(directory, **{flag: "abacus"})
        with pytest.raises(NoBackendError, match="no candidate named 'abacus'"):
            plan_executor(spec, open_checkpoint(spec.source))


def test_a_request_that_does_not_fit_is_refused_with_a_length_that_does(directory: Path) -> None:
    spec = tiny_spec(directory, max_model_len=4096, kv_cache_memory=300_000)
    checkpoint = open_checkpoint(spec.source)
    with pytest.raises(ConfigError, match="--max-model-len to"):
        plan_executor(spec, checkpoint)
    generous = plan_executor(replace(spec, kv_cache_memory=1 << 30), checkpoint)
    length = longest_request(generous.built, generous.weights, spec)
    plan_executor(replace(spec, max_model_len=length), checkpoint)
    with pytest.raises(ConfigError):
        plan_executor(replace(spec, max_model_len=length + 1), checkpoint)


def test_weights_that_exceed_the_machine_are_refused_before_they_are_read(directory: Path) -> None:
    tight = replace(PLATFORM, memory_bytes=1 << 20, memory_available_bytes=1000)
    spec = tiny_spec(directory, platform=tight, kv_cache_memory=None)
    with pytest.raises(ConfigError, match="Choose a smaller model"):
        plan_executor(spec, Unreadable(open_checkpoint(spec.source)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype_runs(directory: Path, dtype: str) -> None:
    executor = LocalExecutor(tiny_spec(directory, dtype=dtype))
    maker = PlanMaker(executor.start())
    sampling = SamplingParams(seed=1, logprobs=3, top_p=0.9)
    assert len(run_alone(executor, maker, 0, random_prompt(33), 5, sampling=sampling)) == 5
    assert executor.report
    executor.stop()


def test_dummy_weights_need_a_configuration_alone(tmp_path: Path) -> None:
    """The same seed gives the same model, another seed another one."""
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama").to_dict()))

    def tokens(seed: int) -> list[int]:
        executor = LocalExecutor(tiny_spec(tmp_path, load_format="dummy", dummy_seed=seed))
        maker = PlanMaker(executor.start())
        answer = run_alone(executor, maker, 0, random_prompt(9), 12, sampling=SamplingParams(seed=3))
        executor.stop()
        return answer

    first = tokens(1)
    assert all(0 <= token < VOCAB for token in first)
    assert tokens(1) == first
    assert tokens(2) != first


def test_loading_reports_its_progress(directory: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    load_executor(tiny_spec(directory), progress=lambda *at: seen.append(at))
    total = len(seen) - 1
    assert seen == [("weights", done, total) for done in range(total + 1)]


@pytest.mark.parametrize("records", [True, False])
def test_recording_reports_its_progress(directory: Path, monkeypatch: pytest.MonkeyPatch, records: bool) -> None:
    seen: list[tuple[str, int, int]] = []
    monkeypatch.setattr(DeviceRunner, "record", lambda *_: None)
    spec = tiny_spec(directory, max_num_seqs=4, graphs=records)
    load_executor(spec, progress=lambda *at: seen.append(at), launches=True)
    total = len(padded_row_counts(4)) if records else 0
    assert [at for at in seen if at[0] != "weights"] == [("graphs", done, total) for done in range(1, total + 1)]


def test_a_method_for_quantized_weights_is_an_error_where_there_are_none(directory: Path) -> None:
    spec = tiny_spec(directory, platform=RECORDED["h200"], dtype="bfloat16", linear_backend="cuda_fp8")
    checkpoint = open_checkpoint(spec.source)
    with pytest.raises(ConfigError, match="Leave out --linear-backend cuda_fp8"):
        plan_executor(spec, checkpoint)
