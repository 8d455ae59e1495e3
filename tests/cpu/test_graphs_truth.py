"""Recorded decode steps against eager ones, bit for bit, on tiny models: executors driven by one script of plans, and
whole engines with preemption, prefix hits and aborts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from executor_fixtures import GREEDY, VOCAB, PlanMaker, random_prompt, save_tiny_model, tiny_spec

from penstock import LLM
from penstock.executor.local import LocalExecutor
from penstock.platforms.probe import extension_missing, probe_platform
from penstock.types.control import CheckIntegrity, TimeKernels
from penstock.types.request import SamplingParams
from penstock.types.result import StepResult

pytestmark = pytest.mark.skipif(bool(extension_missing()), reason=extension_missing() or "-")

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
DRAWN = SamplingParams(seed=3, temperature=0.9, top_p=0.9, logprobs=5)
DESCRIBED = SamplingParams(temperature=0.0, logprobs=5)


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp(request.param)
    save_tiny_model(request.param, path)
    return path


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., LocalExecutor]]:
    executors: list[LocalExecutor] = []

    def started(**changes: Any) -> LocalExecutor:
        executor = LocalExecutor(tiny_spec(directory, platform=probe_platform(), **changes))
        executors.append(executor)
        executor.start()
        return executor

    yield started
    for executor in executors:
        executor.stop()


def play(executor: LocalExecutor, seed: int, *, oversize: int = 0) -> list[StepResult]:
    """Requests come, decode in changing company, share prefixes and are dropped in the middle; always the same ones
    for a seed. ``oversize`` adds a step of so many tokens half-way."""
    assert executor._loaded is not None
    maker, dice, results = PlanMaker(executor._loaded.capacity), random.Random(seed), []
    known: dict[int, int] = {}
    for step in range(60):
        if len(known) < 6 and dice.random() < 0.4:
            seat = next(seat for seat in range(6) if seat not in known)
            prompt = random_prompt(dice.randrange(1, 40), seed=dice.randrange(5))
            maker.admit(seat, prompt, dice.choice([GREEDY, GREEDY, DRAWN, DESCRIBED]), request_id=step)
            known[seat] = len(prompt)
        elif known and dice.random() < 0.08:
            seat = dice.choice(sorted(known))
            maker.drop(seat)
            del known[seat]
        if oversize and step == 30:
            seat = next(iter(known))
            maker.drop(seat)
            maker.admit(seat, random_prompt(oversize), request_id=100)
            known[seat] = oversize
        rows = []
        for seat in dice.sample(sorted(known), len(known)):
            left = known[seat] - maker.residents[seat].num_computed
            rows.append((seat, left, True))
        if not rows:
            continue
        result = executor.step(maker.plan(rows)).result()
        results.append(result)
        for (seat, _, _), tokens in zip(rows, result.row_tokens, strict=True):
            known[seat] += len(tokens)
    return results


def without_times(results: list[StepResult]) -> list[tuple[Any, ...]]:
    return [(r.row_tokens, r.logprobs, r.failed_rows) for r in results]


def graphs_of(executor: LocalExecutor) -> Any:
    assert executor._loaded is not None
    return executor._loaded.runner.graphs


def test_recorded_steps_have_the_bits_of_eager_ones(start: Callable[..., LocalExecutor]) -> None:
    recorded, eager = start(), start(graphs=False)
    assert without_times(play(recorded, 1)) == without_times(play(eager, 1))
    assert graphs_of(recorded).refusals == ()
    assert len(graphs_of(recorded)) > 4
    assert recorded.decisions[-1].chosen == "graphs"
    assert len(graphs_of(eager)) == 0
    assert (eager.decisions[-1].chosen, eager.decisions[-1].why) == ("eager", "turned off by --no-graphs")


def test_inputs_that_move_are_recorded_again(start: Callable[..., LocalExecutor]) -> None:
    """A step of more tokens than were announced makes the inputs move in the middle of decoding."""
    recorded, eager = start(max_num_batched_tokens=32), start(graphs=False, max_num_batched_tokens=32)
    assert without_times(play(recorded, 3, oversize=150)) == without_times(play(eager, 3, oversize=150))
    assert len(graphs_of(recorded)) > 0


def test_an_arena_that_is_too_small_is_a_reason_not_a_failure(start: Callable[..., LocalExecutor]) -> None:
    recorded, eager = start(), start(graphs=False)
    graphs = graphs_of(recorded)
    graphs._recorder._buffer = graphs._recorder._buffer[:4096]
    graphs.forget()
    assert without_times(play(recorded, 4)) == without_times(play(eager, 4))
    assert any("no region of" in reason for reason in graphs.refusals)


def test_a_torch_op_in_the_way_is_named_and_steps_run_eagerly(start: Callable[..., LocalExecutor]) -> None:
    executor = start(attention_backend="cpu_sdpa", kv_cache_dtype="float32")
    decision = executor.decisions[-1]
    assert decision.chosen == "eager"
    assert "tolist" in decision.rejected[0].reasons[0]
    assert all(len(tokens) == 1 for result in play(executor, 5) for tokens in result.row_tokens)


def test_kernels_are_timed_by_name_on_request(start: Callable[..., LocalExecutor]) -> None:
    executor = start()
    before = without_times(play(executor, 6))
    assert executor.control(TimeKernels(True)).kernel_times == ()
    assert without_times(play(executor, 6)) == before
    times = executor.control(TimeKernels(False)).kernel_times
    assert len(times) > 5
    assert all(time.calls > 0 and time.seconds > 0 for time in times)
    assert executor.control(TimeKernels(False)).kernel_times == ()


def test_an_engine_that_preempts_and_aborts_answers_the_same(directory: Path) -> None:
    """More requests than the cache holds, half of them over a common prefix; every third leaves early."""
    prefix = random_prompt(40, seed=1)
    prompts = [(*prefix[: 40 * (i % 2)], *random_prompt(5 + i, seed=i)) for i in range(10)]
    sampling = [
        SamplingParams(temperature=0.0 if i % 3 else 0.8, seed=i, max_tokens=50, ignore_eos=True) for i in range(10)
    ]
    answers = []
    for graphs in (True, False):
        with LLM(
            directory,
            graphs=graphs,
            load_format="dummy",
            dtype="float32",
            seed=7,
            max_model_len=200,
            max_num_seqs=8,
            max_num_batched_tokens=48,
            block_size=16,
            kv_cache_dtype="float32",
            kv_cache_memory=16 * 16 * 2 * 3 * 2 * 16 * 4,
        ) as llm:
            for _ in range(2):
                left = llm.stream(prompts[0], sampling[0])
                next(left)
                left.close()  # type: ignore[attr-defined]
                answers.append([answer.outputs[0].token_ids for answer in llm.generate(prompts, sampling)])
            assert llm.stats().num_preemptions > 0
            assert llm.control(CheckIntegrity()).ok
    assert answers[0] == answers[1] == answers[2] == answers[3]
    assert all(max(tokens) < VOCAB for tokens in answers[0])
