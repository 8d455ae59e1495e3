"""The whole executor on tiny random models, driven by hand-made plans: transformers decides what is right."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from executor_fixtures import (
    GREEDY,
    VOCAB,
    PlanMaker,
    assert_same_logprobs,
    describe_alone,
    greedy_by_transformers,
    random_prompt,
    run_alone,
    save_tiny_model,
    tiny_spec,
)

from penstock.executor.load import load_executor
from penstock.executor.local import LocalExecutor
from penstock.types.kv import Visibility
from penstock.types.request import SamplingParams

FAMILIES = ("llama", "mistral", "gemma3", "qwen2", "qwen3")
DESCRIBED = SamplingParams(temperature=0.0, logprobs=20)


class Lab:
    """One model: transformers' answers, and fresh executors over the same files."""

    backends: tuple[str, ...] = ("cpu_sdpa", "reference_torch")

    def __init__(self, name: str, directory: Path, *, launches: bool) -> None:
        self.name = name
        self._launches = launches
        self.directory = directory
        self.reference = save_tiny_model(name, directory)
        self._open: list[LocalExecutor] = []

    def start(self, **changes: Any) -> tuple[LocalExecutor, PlanMaker]:
        load = partial(load_executor, launches=self._launches)
        executor = LocalExecutor(tiny_spec(self.directory, **changes), load=load, launches=self._launches)
        self._open.append(executor)
        return executor, PlanMaker(executor.start())

    def greedy(self, prompt: tuple[int, ...], count: int) -> list[int]:
        return greedy_by_transformers(self.reference, prompt, count)

    def close(self) -> None:
        for executor in self._open:
            executor.stop()


# A DeviceRunner works on any device; here on the CPU, where nothing is recorded but shapes are filled up.
@pytest.fixture(scope="module", params=[*FAMILIES, "llama, launched", "gemma3, launched"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pytest.importorskip("transformers")
    name, _, launched = request.param.partition(", ")
    lab = Lab(name, tmp_path_factory.mktemp(name), launches=bool(launched))
    yield lab
    lab.close()


def test_greedy_tokens_are_those_of_transformers(lab: Lab) -> None:
    executor, maker = lab.start()
    for length in (1, 17, 70):
        prompt = random_prompt(length, seed=length)
        assert run_alone(executor, maker, 0, prompt, 40) == lab.greedy(prompt, 40)
    result = executor.step(maker.plan([])).result()
    assert result.timings.ended >= result.timings.started > 0


def test_a_mixed_batch_equals_single_requests(lab: Lab) -> None:
    """Requests of several lengths join, prefill in chunks beside decoding ones, and leave."""
    executor, maker = lab.start()
    prompts = [random_prompt(length, seed=length) for length in (3, 41, 29, 64, 8, 16)]
    tokens: list[list[int]] = [[] for _ in prompts]
    joined = 0
    for step in range(60):
        if step % 3 == 0 and joined < len(prompts):
            maker.admit(joined, prompts[joined], request_id=joined)
            joined += 1
        rows = []
        for seat, resident in sorted(maker.residents.items(), key=lambda entry: -entry[0]):
            left = len(prompts[seat]) + len(tokens[seat]) - resident.num_computed
            count = min(left, 11)
            rows.append((seat, count, count == left))
        plan = maker.plan(rows)
        for (seat, _, _), new in zip(rows, executor.step(plan).result().row_tokens, strict=True):
            tokens[seat] += new
            if len(tokens[seat]) == 24:
                maker.drop(seat)
    assert not maker.residents
    for prompt, got in zip(prompts, tokens, strict=True):
        assert got == lab.greedy(prompt, 24)


@pytest.mark.parametrize("chunk", [1, 7, 16, 33])
def test_chunked_prefill_equals_whole(lab: Lab, chunk: int) -> None:
    executor, maker = lab.start()
    prompt = random_prompt(50)
    maker.admit(0, prompt)
    tokens: list[int] = []
    for begin in range(0, len(prompt), chunk):
        count = min(chunk, len(prompt) - begin)
        tokens += executor.step(maker.plan([(0, count, begin + count == len(prompt))])).result().row_tokens[0]
    for _ in range(9):
        tokens += executor.step(maker.plan([(0, 1, True)])).result().row_tokens[0]
    assert tokens == lab.greedy(prompt, 10)


def test_a_cached_prefix_equals_computing_it(lab: Lab) -> None:
    """A second request shares the first one's full blocks of their common prefix while the first still decodes."""
    executor, maker = lab.start()
    first = random_prompt(70)
    maker.admit(0, first)
    executor.step(maker.plan([(0, 70, True)])).result()
    second = (*first[:48], *random_prompt(15, seed=9))
    shared, begin = [], []
    for group, spec in enumerate(maker.capacity.groups):
        skipped = 0 if spec.window is None else max(0, 48 - spec.window + 1) // spec.tokens_per_block
        begin.append(skipped)
        shared.append(maker.residents[0].blocks[group][skipped : 48 // spec.tokens_per_block])
    maker.admit(1, second, DESCRIBED, num_computed=48, blocks=shared, first_block=begin)
    result = executor.step(maker.plan([(0, 1, True), (1, 15, True)])).result()
    tokens, entries = list(result.row_tokens[1]), list(result.logprobs[1])
    for _ in range(9):
        result = executor.step(maker.plan([(1, 1, True)])).result()
        tokens += result.row_tokens[0]
        entries += result.logprobs[0]
    assert tokens == lab.greedy(second, 10)
    uncached, want = describe_alone(executor, maker, 2, second, 10, sampling=DESCRIBED)
    assert tokens == uncached
    assert_same_logprobs(entries, want)


def test_preempted_and_resumed_equals_uninterrupted(lab: Lab) -> None:
    """Greedy and random requests lose their seat and blocks; all known tokens come back in the second admission."""
    executor, maker = lab.start()
    prompt = random_prompt(21)
    random = SamplingParams(seed=5, temperature=1.3, top_p=0.95, frequency_penalty=0.5, logprobs=20)
    for sampling in (DESCRIBED, random):
        whole, want = describe_alone(executor, maker, 0, prompt, 20, sampling=sampling)
        start, before = describe_alone(executor, maker, 1, prompt, 8, sampling=sampling)
        rest, after = describe_alone(
            executor, maker, 2, (*prompt, *start), 12, sampling=sampling, num_prompt=len(prompt), request_id=99
        )
        assert start + rest == whole
        assert_same_logprobs(before + after, want)


def test_plans_in_flight_do_not_know_the_sampled_token(lab: Lab) -> None:
    """Thirty plans are submitted before one result is read."""
    executor, maker = lab.start()
    prompts = [random_prompt(12, seed=1), random_prompt(30, seed=2)]
    maker.admit(0, prompts[0])
    maker.admit(1, prompts[1])
    handles = [executor.step(maker.plan([(0, 12, True), (1, 30, True)]))]
    handles += [executor.step(maker.plan([(1, 1, True), (0, 1, True)])) for _ in range(29)]
    results = [handle.result().row_tokens for handle in handles]
    first = [results[0][0][0], *(row[1][0] for row in results[1:])]
    second = [results[0][1][0], *(row[0][0] for row in results[1:])]
    assert first == lab.greedy(prompts[0], 30)
    assert second == lab.greedy(prompts[1], 30)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(seed=3, temperature=0.9, repetition_penalty=1.2)])
def test_drafts_change_speed_never_tokens(lab: Lab, sampling: SamplingParams) -> None:
    """Right drafts, wrong ones, and right ones followed by wrong ones; two seats with different drafts per step."""
    executor, maker = lab.start()
    prompt = random_prompt(18)
    want = run_alone(executor, maker, 0, prompt, 30, sampling=sampling)
    for seat in (0, 1):
        maker.admit(seat, prompt, sampling)
    got: list[list[int]] = [[], []]
    lengths: set[int] = set()
    count, step = 18, 0
    while min(map(len, got)) < 24:
        right = [want[len(one) :] for one in got]
        wrong = [[(token + 1) % VOCAB for token in one] for one in right]
        drafts = [
            ([], [*right[0][:2], *wrong[0][2:4]], right[0][:3], wrong[0][:1])[step % 4] if step else [],
            (right[1][:1], [], wrong[1][:2])[step % 3] if step else [],
        ]
        plan = maker.plan([(0, count, True), (1, count, True)], drafts)
        result = executor.step(plan).result()
        maker.learn(plan, result)
        for one, new in zip(got, result.row_tokens, strict=True):
            one += new
            lengths.add(len(new))
        count, step = 1, step + 1
    assert lengths >= {1, 2, 3, 4}
    for one in got:
        assert one[:24] == want[:24]


def test_log_probabilities_are_those_of_transformers(lab: Lab) -> None:
    executor, maker = lab.start()
    prompt = random_prompt(40)
    sampling = SamplingParams(seed=1, temperature=1.5, logprobs=5, prompt_logprobs=3)
    maker.admit(0, prompt, sampling)
    tokens, prompt_entries, entries = [], [], []
    for count, samples in [(13, False), (13, False), (14, True)] + [(1, True)] * 6:
        result = executor.step(maker.plan([(0, count, samples)])).result()
        tokens += result.row_tokens[0]
        prompt_entries += result.prompt_logprobs.get(0, ())
        entries += result.logprobs.get(0, ())
    with torch.inference_mode():
        logits = lab.reference(torch.tensor([[*prompt, *tokens]])).logits[0]
    want = logits.double().log_softmax(-1)
    assert len(prompt_entries) == len(prompt) - 1
    assert len(entries) == len(tokens) == 7
    for position, entry in enumerate([*prompt_entries, *entries]):
        chosen = (*prompt, *tokens)[position + 1]
        row = want[position]
        assert entry.token_ids[0] == chosen
        assert list(entry.token_ids[1:]) == row.topk(5 if position >= 39 else 3).indices.tolist()
        assert entry.logprobs == pytest.approx(row[list(entry.token_ids)].tolist(), abs=1e-4)
        assert entry.rank == int((row > row[chosen]).sum()) + 1


def test_a_window_does_not_need_the_blocks_behind_it(lab: Lab) -> None:
    """Blocks that left the window are given to another request, which overwrites them, while the first goes on."""
    executor, maker = lab.start()
    windows = [g for g, spec in enumerate(maker.capacity.groups) if spec.visibility is Visibility.WINDOW]
    prompt, other = random_prompt(90), random_prompt(60, seed=8)
    maker.admit(0, prompt)
    tokens = list(executor.step(maker.plan([(0, 90, True)])).result().row_tokens[0])
    for group in windows:
        spec = maker.capacity.groups[group]
        gone = (90 - spec.window) // spec.tokens_per_block
        resident = maker.residents[0]
        assert gone >= 3
        maker.free[spec.pool] += resident.blocks[group][:gone]
        resident.blocks[group] = resident.blocks[group][gone:]
        resident.first_block[group] = gone
    maker.admit(1, other)
    result = executor.step(maker.plan([(1, 60, True), (0, 1, True)])).result()
    second = list(result.row_tokens[0])
    tokens += result.row_tokens[1]
    for _ in range(20):
        result = executor.step(maker.plan([(1, 1, True), (0, 1, True)])).result()
        second += result.row_tokens[0]
        tokens += result.row_tokens[1]
    assert tokens == lab.greedy(prompt, 22)
    assert second == lab.greedy(other, 21)


def test_a_failed_row_leaves_its_neighbour_alone_and_can_be_computed_again(lab: Lab) -> None:
    """Nothing is allowed by the first mask of row 0; the next plan computes its last token again."""
    executor, maker = lab.start()
    prompts = [random_prompt(20, seed=3), random_prompt(20, seed=4)]
    for seat in (0, 1):
        maker.admit(seat, prompts[seat])
    plan = maker.plan([(0, 20, True), (1, 20, True)], masked_rows=(0,))
    handle = executor.step(plan)
    handle.masks([0], [bytes(4 * (VOCAB // 32 + 1))])
    result = handle.result()
    assert list(result.failed_rows) == [0]
    assert result.row_tokens[0] == ()
    maker.learn(plan, result)
    tokens = [[], list(result.row_tokens[1])]
    for _ in range(5):
        answer = executor.step(maker.plan([(0, 1, True), (1, 1, True)])).result().row_tokens
        tokens[0] += answer[0]
        tokens[1] += answer[1]
    assert tokens[0] == lab.greedy(prompts[0], 5)
    assert tokens[1] == lab.greedy(prompts[1], 6)


def test_a_masked_row_follows_its_drafts_as_far_as_it_has_masks(lab: Lab) -> None:
    executor, maker = lab.start()
    prompt = random_prompt(20, seed=3)
    want = lab.greedy(prompt, 5)
    maker.admit(0, prompt)
    handle = executor.step(maker.plan([(0, 20, True)], [want[:4]], masked_rows=(0,)))
    everything = b"\xff" * (4 * (VOCAB // 32 + 1))
    handle.masks([0, 0, 0], [everything] * 3)
    assert list(handle.result().row_tokens[0]) == want[:3]


@pytest.mark.parametrize("backend", ["cpu_sdpa", "cuda_sdpa", "reference_torch"])
def test_every_attention_backend_gives_the_same_tokens(lab: Lab, backend: str) -> None:
    if backend not in lab.backends:
        pytest.skip("refuses this platform")
    executor, maker = lab.start(attention_backend=backend, block_size=8)
    prompt = random_prompt(45)
    assert run_alone(executor, maker, 0, prompt, 12) == lab.greedy(prompt, 12)
    assert backend in {decision.chosen for decision in executor.decisions}
    assert all(group.entries_per_block == 8 for group in maker.capacity.groups)
