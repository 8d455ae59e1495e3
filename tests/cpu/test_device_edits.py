"""Penalties, biases and forbidden tokens in steps that are launched: the tokens are those of the host's sampler, and
the host does not wait for a step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from executor_fixtures import (
    GREEDY,
    PLATFORM,
    VOCAB,
    PlanMaker,
    assert_same_logprobs,
    describe_alone,
    random_prompt,
    save_tiny_model,
    tiny_spec,
)

from penstock.executor.device_edits import DeviceEdits, EditOps, can_edit, edit_bytes, refusal
from penstock.executor.load import load_executor
from penstock.executor.local import LocalExecutor, LocalStepHandle
from penstock.executor.sampler.sampler import NO_TOKEN_LEFT, OVERFLOW, Sampler
from penstock.kernels import reference
from penstock.platforms.probe import probe_platform
from penstock.types.request import SamplingParams
from penstock.types.result import TokenLogprobs

# With the extension, whose op draws beside the host's: without an op that draws, every random row needs the host.
HERE = replace(
    probe_platform(),
    name="cpu",
    accelerators=(),
    memory_bytes=PLATFORM.memory_bytes,
    memory_available_bytes=PLATFORM.memory_bytes,
)

EDITS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.9},
    "negative": {"frequency_penalty": -0.4, "presence_penalty": -0.2, "repetition_penalty": 0.9},
    "bias": {"logit_bias": {5: 4.0, 9: -100.0, 150: 3.5}},
    "allowed": {"allowed_token_ids": tuple(range(3, 60))},
    "bad": {"bad_token_ids": tuple((t,) for t in range(0, VOCAB, 2))},
    "least": {"min_tokens": 6, "stop_token_ids": tuple(range(0, VOCAB, 3))},
    "all": {
        "repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.6, "logit_bias": {7: 5.0, 30: 3.0},
        "allowed_token_ids": tuple(range(100)), "bad_token_ids": ((8,), (9,)), "min_tokens": 9,
        "stop_token_ids": tuple(range(0, 100, 4)),
    },
}  # fmt: skip
CUTS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.3, "seed": 4, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
)
# What needs the host, and what needs no edit.
OTHERS: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": 2},
    {"prompt_logprobs": 2, "frequency_penalty": 0.5},
    {"bad_token_ids": ((4, 5), (6,)), "frequency_penalty": 0.5},
    {"presence_penalty": 1.0, "logprobs": 0},
)

Start = Callable[..., tuple[LocalExecutor, PlanMaker]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    pytest.importorskip("transformers")
    if HERE.extension_missing:
        pytest.skip(HERE.extension_missing)
    directory = tmp_path_factory.mktemp("llama")
    save_tiny_model("llama", directory)
    started: list[LocalExecutor] = []

    def make(
        *, launches: bool, depth: int = 2, directory: Path = directory, **changes: Any
    ) -> tuple[LocalExecutor, PlanMaker]:
        load = partial(load_executor, launches=launches)
        spec = tiny_spec(directory, platform=HERE, depth=depth, **changes)
        executor = LocalExecutor(spec, load=load, launches=launches)
        started.append(executor)
        return executor, PlanMaker(executor.start())

    yield make
    for executor in started:
        executor.stop()


@pytest.fixture(scope="module")
def plainly(start: Start) -> Callable[..., tuple[list[int], list[TokenLogprobs]]]:
    """The tokens of one request by the host's runner, and their log-probabilities."""
    executor, maker = start(launches=False, depth=1)

    def run(prompt: tuple[int, ...], sampling: SamplingParams, count: int) -> tuple[list[int], list[TokenLogprobs]]:
        return describe_alone(executor, maker, 0, prompt, count, sampling=sampling)

    return run


def careful(handle: LocalStepHandle) -> bool:
    assert handle.pending is not None
    return handle.pending.careful


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("cuts", CUTS, ids=["greedy", "drawn", "cut"])
def test_tokens_are_those_of_the_host(start: Start, plainly: Any, name: str, cuts: dict[str, Any]) -> None:
    """All plans are submitted before a result is read, and none is careful."""
    executor, maker = start(launches=True, depth=3)
    sampling, prompt = SamplingParams(**EDITS[name], **cuts), random_prompt(19, seed=4)
    maker.admit(2, prompt, sampling)
    plans = [[(2, 7, False)], [(2, 12, True)], *([(2, 1, True)] for _ in range(24))]
    handles = [executor.step(maker.plan(rows)) for rows in plans]
    assert not any(map(careful, handles))
    tokens = [token for handle in handles for token in handle.result().row_tokens[0]]
    assert tokens == plainly(prompt, sampling, 25)[0]


@dataclass
class Resident:
    request: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    left: int = 0  # tokens to compute before it samples
    in_flight: int = 0
    leaves_at: int = 0


@pytest.mark.parametrize("seed", range(4))
def test_random_mixes_in_flight(start: Start, plainly: Any, seed: int) -> None:
    """Requests join while steps are in flight, decode beside each other and beside such that need the host, lose their
    seat and come back, and leave their seat to others."""
    dice = random.Random(seed)
    executor, maker = start(launches=True, depth=2)
    waiting: list[Resident] = []
    for request in range(12):
        sampling = dice.choice([*EDITS.values()] * 2 + [*OTHERS])
        cuts = dice.choice(CUTS)
        prompt = random_prompt(dice.randrange(1, 30), seed=100 * seed + request)
        waiting.append(Resident(request, prompt, SamplingParams(**sampling, **cuts), leaves_at=dice.randrange(2, 30)))
    seats: dict[int, Resident] = {}
    open_steps: list[tuple[LocalStepHandle, list[tuple[Resident, bool]]]] = []
    done: list[Resident] = []

    def absorb() -> None:
        handle, rows = open_steps.pop(0)
        result = handle.result()
        for row, ((resident, samples), tokens) in enumerate(zip(rows, result.row_tokens, strict=True)):
            resident.in_flight -= 1
            resident.logprobs += result.logprobs.get(row, ())
            if samples:
                resident.tokens += tokens

    while waiting or seats:
        for seat, resident in list(seats.items()):
            if resident.in_flight:
                continue
            if len(resident.tokens) >= resident.leaves_at:
                maker.drop(seat)
                done.append(seats.pop(seat))
            elif dice.random() < 0.1:  # preempted
                maker.drop(seat)
                waiting.append(seats.pop(seat))
        free = [seat for seat in range(6) if seat not in seats]
        if waiting and free and dice.random() < 0.7:
            seat, resident = dice.choice(free), waiting.pop(0)
            seats[seat] = resident
            known = (*resident.prompt, *resident.tokens)
            resident.left = len(known)
            maker.admit(seat, known, resident.sampling, num_prompt=len(resident.prompt), request_id=resident.request)
        rows, of_rows = [], []
        for seat, resident in dice.sample(sorted(seats.items()), len(seats)):
            if len(resident.tokens) + resident.in_flight > resident.leaves_at + 3 or dice.random() < 0.15:
                continue
            count = min(resident.left, dice.randrange(1, 20)) if resident.left else 1
            resident.left = max(0, resident.left - count)
            rows.append((seat, count, not resident.left))
            of_rows.append((resident, not resident.left))
            resident.in_flight += 1
        open_steps.append((executor.step(maker.plan(rows)), of_rows))
        while len(open_steps) > dice.choice((1, 2)):
            absorb()
    while open_steps:
        absorb()
    assert len(done) == 12
    for resident in done:
        tokens, logprobs = plainly(resident.prompt, resident.sampling, len(resident.tokens))
        assert resident.tokens == tokens, resident.sampling
        assert len(resident.logprobs) == (0 if resident.sampling.logprobs is None else len(tokens))
        if logprobs:
            assert_same_logprobs(resident.logprobs, logprobs, 1e-4)


@pytest.mark.parametrize("sampling", [
    SamplingParams(temperature=0.0, logprobs=20),
    SamplingParams(seed=4, temperature=1.4, logprobs=3),
    SamplingParams(seed=4, logprobs=0, min_p=0.01, repetition_penalty=1.5, allowed_token_ids=tuple(range(50))),
])  # fmt: skip
def test_log_probabilities_are_those_of_the_host(start: Start, plainly: Any, sampling: SamplingParams) -> None:
    """Of the model's own distribution, whatever the request changes. The neighbour asks for none."""
    executor, maker = start(launches=True, depth=3)
    prompt = random_prompt(14, seed=6)
    maker.admit(1, random_prompt(5), GREEDY)
    maker.admit(4, prompt, sampling)
    handles = [executor.step(maker.plan([(1, 5, True), (4, 14, True)]))]
    handles += [executor.step(maker.plan([(4, 1, True), (1, 1, True)][:: 1 - 2 * (i % 2)])) for i in range(12)]
    assert not any(map(careful, handles))
    rows = [1, *(i % 2 for i in range(12))]
    results = [handle.result() for handle in handles]
    tokens, want = plainly(prompt, sampling, 13)
    assert [result.row_tokens[row][0] for row, result in zip(rows, results, strict=True)] == tokens
    assert all(set(result.logprobs) == {row} for row, result in zip(rows, results, strict=True))
    assert_same_logprobs([result.logprobs[row][0] for row, result in zip(rows, results, strict=True)], want, 1e-4)


def test_what_needs_the_host_is_careful(start: Start) -> None:
    executor, maker = start(launches=True)
    wanted = [False, False, True, True, False]
    for seat, others in enumerate(OTHERS):
        maker.admit(seat, random_prompt(5), SamplingParams(**others, temperature=0.0))
    handles = [executor.step(maker.plan([(seat, 5, True)])) for seat in range(len(OTHERS))]
    assert list(map(careful, handles)) == wanted
    for handle in handles:
        handle.result()


def test_every_seat_has_a_place(start: Start, plainly: Any) -> None:
    """A checkpoint whose own defaults penalise has every request do so. Seats are given to others and keep theirs."""
    num_seats = 80
    executor, maker = start(launches=True, max_num_seqs=num_seats, kv_cache_memory=32 << 20)
    sampling = SamplingParams(**EDITS["all"], temperature=0.0)
    prompts = [random_prompt(1 + seat % 7, seed=seat) for seat in range(num_seats)]
    tokens: list[list[int]] = [[] for _ in prompts]
    for seat, prompt in enumerate(prompts):
        maker.admit(seat, prompt, sampling)
    for begin in range(0, num_seats, 20):  # a step takes 128 tokens
        rows = [(seat, len(prompts[seat]), True) for seat in range(begin, begin + 20)]
        handle = executor.step(maker.plan(rows))
        assert not careful(handle)
        for (seat, _, _), new in zip(rows, handle.result().row_tokens, strict=True):
            tokens[seat] += new
    for seat in (3, 70):
        maker.drop(seat)
        prompts[seat], tokens[seat] = random_prompt(9, seed=100 + seat), []
        maker.admit(seat, prompts[seat], sampling)
    handle = executor.step(maker.plan([(seat, 9 if seat in (3, 70) else 1, True) for seat in range(num_seats)]))
    handles = [handle, *(executor.step(maker.plan([(seat, 1, True) for seat in range(num_seats)])) for _ in range(3))]
    assert not any(map(careful, handles))
    for handle in handles:
        for one, new in zip(tokens, handle.result().row_tokens, strict=True):
            one += new
    for seat in (0, 3, 4, 63, 64, 70, 79):
        assert tokens[seat] == plainly(prompts[seat], sampling, len(tokens[seat]))[0]


def test_a_described_prompt_is_careful_only_while_it_is_computed(start: Start, plainly: Any) -> None:
    executor, maker = start(launches=True, depth=3)
    sampling, prompt = SamplingParams(seed=2, prompt_logprobs=2, logprobs=1, presence_penalty=0.5), random_prompt(9)
    maker.admit(0, prompt, sampling)
    handles = [executor.step(maker.plan([row])) for row in [(0, 5, False), (0, 3, False), *[(0, 1, True)] * 9]]
    assert list(map(careful, handles)) == [True, True, *[False] * 9], "the last token of a prompt predicts no other"
    results = [handle.result() for handle in handles]
    assert [len(entries) for result in results for entries in result.prompt_logprobs.values()] == [5, 3]
    tokens, logprobs = plainly(prompt, sampling, 9)
    assert [token for result in results for row in result.row_tokens for token in row] == tokens
    assert_same_logprobs([entry for result in results for entry in result.logprobs.get(0, ())], logprobs, 1e-4)
    again = executor.step(maker.plan([(0, 1, True)]))
    assert not careful(again)


# Each makes the step that it is part of a careful one, with so many rows that the host samples.
COMPANY: dict[str, tuple[dict[str, Any], int]] = {
    "typical": ({"typical_p": 0.9}, 1),
    "bad words": ({"bad_token_ids": ((4, 5), (6,)), "temperature": 0.0}, 1),
    "prompt": ({"prompt_logprobs": 1, "temperature": 0.0}, 0),
}


@pytest.mark.parametrize("name", COMPANY)
def test_the_host_samples_none_but_the_rows_that_need_it(
    start: Start, plainly: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What a request gets is computed by the same ops alone and in company."""
    executor, maker = start(launches=True)
    of_company, num_by_host = COMPANY[name]
    wanted = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=3, temperature=0.8, top_p=0.9, logprobs=3),
        SamplingParams(seed=4, **EDITS["all"], logprobs=0),
        SamplingParams(seed=5, **of_company),
        SamplingParams(temperature=0.0, frequency_penalty=1.2),
    ]
    prompts = [random_prompt(7 + seat, seed=seat) for seat in range(5)]
    counts: list[int] = []
    sample = Sampler.sample

    def count(self: Sampler, logits: Any, rows: Any) -> Any:
        counts.append(len(rows))
        return sample(self, logits, rows)

    for seat in (0, 1, 2, 4):
        maker.admit(seat, prompts[seat], wanted[seat])
    results = [executor.step(maker.plan([(seat, 7 + seat, True) for seat in (0, 1, 2, 4)])).result()]
    rows = {0: 0, 1: 1, 2: 2, 4: 3}
    tokens = {seat: list(results[0].row_tokens[row]) for seat, row in rows.items()}
    logprobs = {seat: list(results[0].logprobs.get(row, ())) for seat, row in rows.items()}
    tokens[3], logprobs[3] = [], []
    maker.admit(3, prompts[3], wanted[3])
    monkeypatch.setattr(Sampler, "sample", count)
    careful_steps = 0
    for step in range(8):
        handle = executor.step(maker.plan([(seat, 1 if step or seat != 3 else 10, True) for seat in range(5)]))
        careful_steps += careful(handle)
        result = handle.result()
        for seat in range(5):
            tokens[seat] += result.row_tokens[seat]
            logprobs[seat] += result.logprobs.get(seat, ())
    monkeypatch.undo()
    assert careful_steps == (8 if num_by_host else 1)
    assert counts == [1] * 8 * num_by_host
    for seat in range(5):
        want = plainly(prompts[seat], wanted[seat], len(tokens[seat]))
        assert tokens[seat] == want[0]
        if want[1]:
            assert_same_logprobs(logprobs[seat], want[1], 1e-4)


def test_a_row_without_tokens_beside_one_of_the_host_says_why(start: Start) -> None:
    executor, maker = start(launches=True)
    nothing = SamplingParams(temperature=0.0, allowed_token_ids=(5,), bad_token_ids=((5,),))
    of_host = SamplingParams(temperature=0.0, allowed_token_ids=(6,), bad_token_ids=((6,), (7, 8)))
    for seat, sampling in enumerate((nothing, GREEDY, of_host)):
        maker.admit(seat, random_prompt(6), sampling)
    handle = executor.step(maker.plan([(seat, 6, True) for seat in range(3)]))
    assert careful(handle)
    result = handle.result()
    assert result.failed_rows == {0: NO_TOKEN_LEFT, 2: NO_TOKEN_LEFT}
    assert [len(tokens) for tokens in result.row_tokens] == [0, 1, 0]


def test_a_row_without_tokens_says_why(start: Start) -> None:
    """Only its own request fails; without the minimum of tokens there are some left."""
    executor, maker = start(launches=True)
    allowed = (5, 6, 7)
    bad = ((5,), (7,))
    stops = SamplingParams(
        temperature=0.0, allowed_token_ids=allowed, bad_token_ids=bad, min_tokens=1, stop_token_ids=(6,)
    )
    maker.admit(0, random_prompt(6), stops)
    maker.admit(1, random_prompt(8), replace(stops, temperature=1.0, seed=1, min_tokens=0))
    maker.admit(2, random_prompt(7), GREEDY)
    handle = executor.step(maker.plan([(0, 6, True), (1, 8, True), (2, 7, True)]))
    assert not careful(handle)
    result = handle.result()
    assert result.failed_rows == {0: NO_TOKEN_LEFT}
    assert result.row_tokens[:2] == ((), (6,))
    assert len(result.row_tokens[2]) == 1


def test_refusals() -> None:
    def admit(**params: Any) -> Any:
        return Sampler(10).admit(1, SamplingParams(**params), 3)

    assert refusal(admit(frequency_penalty=1.0), 0, 10) is OVERFLOW
    assert refusal(admit(allowed_token_ids=(3,), logit_bias={3: 5.0}), 0, 10) is OVERFLOW
    only_stops = admit(allowed_token_ids=(3, 4), bad_token_ids=((3,),), min_tokens=2, stop_token_ids=(4,))
    assert refusal(only_stops, 1, 10) is NO_TOKEN_LEFT
    assert refusal(only_stops, 2, 10) is OVERFLOW
    assert refusal(admit(allowed_token_ids=(99,)), 0, 10) is NO_TOKEN_LEFT
    assert can_edit(only_stops)
    assert not can_edit(admit(bad_token_ids=((1, 2),)))


def test_the_tables_take_what_is_planned() -> None:
    edits = DeviceEdits(7, 1000, EditOps(reference.edit_logits, reference.count_tokens), torch.device("cpu"))
    assert sum(table.nbytes for table in (edits._tables().words, edits._tables().shifts)) == edit_bytes(7, 1000)
