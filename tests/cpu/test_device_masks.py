"""Token masks in steps that are launched: the tokens are those of the host's sampler, which is not asked, and failures
are told in its words."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from executor_fixtures import GREEDY, VOCAB, PlanMaker, assert_same_logprobs, random_prompt
from test_device_edits import CUTS, EDITS, Start, careful, start  # noqa: F401 - the fixture
from test_device_traffic import Replays

from penstock.executor.device_masks import DeviceMasks, mask_bytes
from penstock.executor.device_runner import DeviceRunner
from penstock.executor.graphs import StepGraphs, Variant
from penstock.executor.local import LocalExecutor, LocalStepHandle
from penstock.executor.sampler.sampler import EMPTY_MASK, NO_TOKEN_LEFT, NOT_FINITE, OVERFLOW, Sampler
from penstock.kernels import reference
from penstock.types.decision import Decision
from penstock.types.request import SamplingParams
from penstock.types.result import RowFailure, TokenLogprobs

WIDTH = 4 * -(-VOCAB // 32)
EVERYTHING, NOTHING = b"\xff" * WIDTH, bytes(WIDTH)
LOGITS = Variant.LOGITS
Masks = Sequence[bytes]
Outcome = tuple[list[int], list[TokenLogprobs], list[RowFailure]]


def some(seed: int) -> bytes:
    """Half of the tokens."""
    return random.Random(seed).randbytes(WIDTH)


def mask_of(*tokens: int, width: int = WIDTH) -> bytes:
    return sum(1 << token for token in tokens).to_bytes(width, "little")


def runner_of(executor: LocalExecutor) -> DeviceRunner:
    assert executor._loaded is not None
    assert isinstance(executor._loaded.runner, DeviceRunner)
    return executor._loaded.runner


def masked_step(
    executor: LocalExecutor, maker: PlanMaker, rows: list[tuple[int, int, bool]], masks: dict[int, bytes]
) -> LocalStepHandle:
    handle = executor.step(maker.plan(rows, masked_rows=tuple(masks)))
    handle.masks(list(masks), list(masks.values()))
    return handle


Host = Callable[[tuple[int, ...], SamplingParams, Masks], Outcome]


def leave(maker: PlanMaker, seat: int) -> None:
    for spec, blocks in zip(maker.capacity.groups, maker.residents[seat].blocks, strict=True):
        maker.free[spec.pool] += blocks
    maker.drop(seat)


@pytest.fixture(scope="module")
def host(start: Start) -> Host:  # noqa: F811
    """A request alone by the host's runner, one masked step after the other, until it fails."""
    executor, maker = start(launches=False, depth=1)

    def run(prompt: tuple[int, ...], sampling: SamplingParams, masks: Masks) -> Outcome:
        maker.admit(0, prompt, sampling)
        outcome: Outcome = ([], [], [])
        for step, mask in enumerate(masks):
            result = masked_step(executor, maker, [(0, 1 if step else len(prompt), True)], {0: mask}).result()
            outcome[0].extend(result.row_tokens[0])
            outcome[1].extend(result.logprobs.get(0, ()))
            outcome[2].extend(result.failed_rows.values())
            if result.failed_rows:
                break
        leave(maker, 0)
        return outcome

    return run


@pytest.fixture(scope="module")
def device(start: Start) -> tuple[LocalExecutor, PlanMaker]:  # noqa: F811
    """Of tests that leave their seats."""
    return start(launches=True, depth=3)


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ends a test in which the host samples, once called."""

    def refuse(*_: object) -> None:
        raise AssertionError("the host samples")

    return lambda: monkeypatch.setattr(Sampler, "sample", refuse)


@pytest.mark.parametrize("cuts", CUTS, ids=["greedy", "drawn", "cut"])
@pytest.mark.parametrize("name", ["nothing", "described", *EDITS])
def test_tokens_are_those_of_the_host(
    device: tuple[LocalExecutor, PlanMaker], host: Host, unasked: Any, name: str, cuts: dict[str, Any]
) -> None:
    """Plans are submitted before results are read; two of three steps have masks."""
    edits = {"nothing": {}, "described": {"logprobs": 4}}.get(name) or EDITS.get(name, {})
    sampling, prompt = SamplingParams(**edits, **cuts), random_prompt(19, seed=4)
    masks = [EVERYTHING if step % 3 == 2 else some(step) for step in range(20)]
    want = host(prompt, sampling, masks)
    assert len(want[0]) == 20
    unasked()
    executor, maker = device
    maker.admit(2, prompt, sampling)
    handles = []
    for step, mask in enumerate(masks):
        rows = [(2, 1 if step else 19, True)]
        handles.append(masked_step(executor, maker, rows, {} if mask is EVERYTHING else {0: mask}))
    assert not any(map(careful, handles))
    results = [handle.result() for handle in handles]
    assert [token for result in results for token in result.row_tokens[0]] == want[0]
    described = [entry for result in results for entry in result.logprobs.get(0, ())]
    assert len(described) == len(want[1])
    leave(maker, 2)
    if described:
        assert_same_logprobs(described, want[1], 1e-4)


def test_neighbours_of_masked_rows(start: Start, host: Host, unasked: Any) -> None:  # noqa: F811
    """Masked rows of every form change their places among such without masks and chunks that sample nothing. A mask
    forbids what is past its end; one that was not delivered, and what is behind the vocabulary, change nothing."""
    samplings = [GREEDY, SamplingParams(seed=1), SamplingParams(seed=2, frequency_penalty=0.7), GREEDY, GREEDY]
    prompts = [random_prompt(9 + seat, seed=seat) for seat in range(5)]
    forms = {0: lambda step: some(step)[:20], 1: lambda step: some(50 + step) + b"\xff" * 9, 2: lambda step: some(step)}
    want = []
    for seat in range(5):
        masks = [forms[seat](step) if seat in forms else EVERYTHING for step in range(8)]
        want.append(host(prompts[seat], samplings[seat], masks)[0])
    unasked()
    executor, maker = start(launches=True, depth=2)
    for seat in range(5):
        maker.admit(seat, prompts[seat], samplings[seat])
    maker.admit(5, random_prompt(60))
    got: list[list[int]] = [[] for _ in range(5)]
    dice, open_steps = random.Random(3), []
    for step in range(8):
        rows = [(seat, 1 if step else len(prompts[seat]), True) for seat in dice.sample(range(5), 5)]
        if step % 4 < 2:
            rows.insert(dice.randrange(6), (5, 7, False))
        masked = {row: seat for row, (seat, _, _) in enumerate(rows) if seat < 4}
        handle = executor.step(maker.plan(rows, masked_rows=tuple(masked)))
        delivered = {row: forms[seat](step) for row, seat in masked.items() if seat in forms}
        handle.masks(list(delivered), list(delivered.values()))
        assert not careful(handle)
        open_steps.append((handle, rows))
    for handle, rows in open_steps:
        for (seat, _, samples), tokens in zip(rows, handle.result().row_tokens, strict=True):
            assert len(tokens) == samples
            if samples:
                got[seat] += tokens
    assert got == want


REFUSALS: dict[str, tuple[SamplingParams, bytes, RowFailure | None]] = {
    "empty": (GREEDY, NOTHING, EMPTY_MASK),
    "empty, drawn": (SamplingParams(seed=1, top_p=0.9), NOTHING, EMPTY_MASK),
    "no bytes": (GREEDY, b"", EMPTY_MASK),
    "behind the vocabulary": (GREEDY, mask_of(VOCAB, VOCAB + 1), EMPTY_MASK),
    "empty, penalised": (SamplingParams(temperature=0.0, presence_penalty=1.0), NOTHING, EMPTY_MASK),
    "empty, allowed": (SamplingParams(temperature=0.0, allowed_token_ids=(4,)), NOTHING, NO_TOKEN_LEFT),
    "against allowed": (SamplingParams(seed=2, allowed_token_ids=(4, 5)), mask_of(6, 7), NO_TOKEN_LEFT),
    "against bad": (SamplingParams(seed=2, bad_token_ids=((6,),)), mask_of(6), NO_TOKEN_LEFT),
    "against stops": (
        SamplingParams(temperature=0.0, min_tokens=1, stop_token_ids=(6, 7)),
        mask_of(6, 7),
        NO_TOKEN_LEFT,
    ),
    "one left": (SamplingParams(seed=2, allowed_token_ids=(4, 5), bad_token_ids=((5,),)), mask_of(4, 5), None),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_row_without_a_token_fails_as_on_the_host(
    device: tuple[LocalExecutor, PlanMaker], host: Host, unasked: Any, name: str
) -> None:
    """And its neighbour has one, in this step and the next."""
    sampling, mask, failure = REFUSALS[name]
    prompt = random_prompt(7)
    want = host(prompt, sampling, [mask])
    neighbour = host(random_prompt(5), GREEDY, [EVERYTHING] * 2)[0]
    assert want[2] == ([] if failure is None else [failure])
    unasked()
    executor, maker = device
    maker.admit(0, prompt, sampling)
    maker.admit(1, random_prompt(5), GREEDY)
    handle = masked_step(executor, maker, [(1, 5, True), (0, len(prompt), True)], {1: mask})
    behind = executor.step(maker.plan([(1, 1, True)]))
    result = handle.result()
    assert list(result.failed_rows.items()) == [(1, failure) for failure in want[2]]
    assert list(result.row_tokens[1]) == want[0]
    assert [*result.row_tokens[0], *behind.result().row_tokens[0]] == neighbour
    for seat in (0, 1):
        leave(maker, seat)


@pytest.mark.parametrize("mask", [mask_of(9), EVERYTHING, NOTHING], ids=["one", "all", "none"])
def test_logits_that_are_not_finite_are_found_below_a_mask(
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    mask: bytes,
) -> None:
    """Also where the mask forbids the token, and in rows without a mask."""
    executor, maker = start(launches=True)
    forward = runner_of(executor)._forward
    answers = forward.answers

    def spoiled(*arguments: Any) -> Any:
        (logits,) = answers(*arguments)
        logits[0, 5], logits[1, 8] = float("nan"), float("-inf")
        return (logits,)

    for seat in range(3):
        maker.admit(seat, random_prompt(5, seed=seat), GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(forward, "answers", spoiled)
        handle = masked_step(executor, maker, [(seat, 5, True) for seat in range(3)], {0: mask, 2: EVERYTHING})
    result = handle.result()
    assert result.failed_rows == {0: NOT_FINITE, 1: NOT_FINITE}
    assert list(map(len, result.row_tokens)) == [0, 0, 1]


@pytest.mark.parametrize("launches", [True, False])
def test_what_overflows_fails_where_the_mask_allows_it(
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    launches: bool,
) -> None:
    executor, maker = start(launches=launches, depth=1)
    assert executor._loaded is not None
    forward = executor._loaded.runner._forward
    name = "answers" if launches else "compute"
    compute = getattr(forward, name)

    def large(*arguments: Any) -> Any:
        (logits,) = compute(*arguments)
        logits[:, 6] = 3e38
        return (logits,)

    for seat in range(2):
        maker.admit(seat, (6, 9, 4), SamplingParams(temperature=0.0, repetition_penalty=0.01))
    with monkeypatch.context() as patch:
        patch.setattr(forward, name, large)
        result = masked_step(executor, maker, [(0, 3, True), (1, 3, True)], {0: mask_of(6, 7), 1: mask_of(7)}).result()
    assert result.failed_rows == {0: OVERFLOW}
    assert result.row_tokens == ((), (7,))


def test_a_masked_step_is_launched_behind_others_and_others_behind_it(start: Start, host: Host) -> None:  # noqa: F811
    """Nothing is finished by a launch while fewer steps than the depth are in flight, and masks are waited for as late
    as may be: when something is launched behind, or the result is asked for."""
    executor, maker = start(launches=True, depth=3)
    maker.admit(0, random_prompt(12), GREEDY)
    before = executor.step(maker.plan([(0, 12, True)]))
    masked = executor.step(maker.plan([(0, 1, True)], masked_rows=(0,)))
    assert masked.pending is not None
    assert not masked.done()
    filled = []

    def fill() -> list[bytes]:
        filled.append(1)
        return [mask_of(17)]

    masked.masks([0], fill)
    assert not filled
    behind = executor.step(maker.plan([(0, 1, True)]))
    assert filled == [1]
    assert [getattr(handle.pending, "result", None) for handle in (before, masked, behind)] == [None] * 3
    tokens = [handle.result().row_tokens[0] for handle in (before, masked, behind)]
    assert tokens[1] == (17,)
    want = host(random_prompt(12), GREEDY, [EVERYTHING, mask_of(17), EVERYTHING])[0]
    assert [token for (token,) in tokens] == want


@pytest.mark.parametrize("name", ["all", "frequency"])
def test_a_row_without_a_token_is_computed_again(start: Start, host: Host, name: str) -> None:  # noqa: F811
    """And its tokens are counted once, whoever sampled them: steps with the neighbour are careful ones."""
    executor, maker = start(launches=True, depth=2)
    sampling, prompt = SamplingParams(seed=5, **EDITS[name]), random_prompt(12)
    want = host(prompt, sampling, [EVERYTHING] * 12)[0]
    maker.admit(0, prompt, sampling)
    maker.admit(1, random_prompt(9), SamplingParams(seed=1, typical_p=0.5))
    tokens: list[int] = []
    for step in range(18):
        num_tokens = 1 if step else len(prompt)
        rows = [(0, num_tokens, True)]
        if step in (0, 7, 8):
            rows.append((1, 1 if step else 9, True))
        fails = step % 3 == 1
        plan = maker.plan(rows, masked_rows=(0,) if fails else ())
        handle = executor.step(plan)
        if fails:
            handle.masks([0], [NOTHING])
        assert careful(handle) == (step in (0, 7, 8))
        result = handle.result()
        assert (0 in result.failed_rows) == fails
        maker.learn(plan, result)
        tokens += result.row_tokens[0]
    assert tokens == want


def test_without_an_op_that_draws_the_host_samples(start: Start, host: Host, monkeypatch: Any) -> None:  # noqa: F811
    decision = Decision("op sample float32", "none", "the test's")
    want = host(random_prompt(9), GREEDY, [some(1), some(2)])[0]
    monkeypatch.setattr("penstock.executor.load.choose_sample_op", lambda platform: (None, decision))
    executor, maker = start(launches=True)
    maker.admit(0, random_prompt(9), GREEDY)
    handles = [masked_step(executor, maker, [(0, count, True)], {0: some(seed)}) for count, seed in ((9, 1), (1, 2))]
    assert all(map(careful, handles))
    assert [handle.result().row_tokens[0][0] for handle in handles] == want


def test_recorded_steps_leave_their_logits_in_one_place(start: Start, host: Host, monkeypatch: Any) -> None:  # noqa: F811
    """Each row count is recorded once, and answers the rows that it has."""
    monkeypatch.setattr("penstock.executor.load.make_graphs", lambda built, spec: StepGraphs(Replays()))
    executor, maker = start(launches=True, depth=2)
    runner = runner_of(executor)
    prompts, mask = [random_prompt(6 + seat, seed=seat) for seat in range(5)], some(1)
    for seat in range(5):
        maker.admit(seat, prompts[seat], GREEDY)
    tokens: list[list[int]] = [[] for _ in prompts]
    for step, count in enumerate([5, 3, 5, 1, 3, 5]):
        rows = [(seat, 1 if step else len(prompts[seat]), True) for seat in range(count)]
        handle = masked_step(executor, maker, rows, dict.fromkeys(range(count), mask))
        for seat, new in enumerate(handle.result().row_tokens):
            tokens[seat] += new
    for seat in range(5):
        assert tokens[seat] == host(prompts[seat], GREEDY, [mask] * len(tokens[seat]))[0]
    kept = {key.shape.num_rows: graph.answer for key, graph in runner.graphs._graphs.items() if key.variant is LOGITS}
    assert sorted(kept) == [1, 4, 6]
    assert {answer[0].data_ptr() for answer in kept.values()} == {runner._masks._kept.data_ptr()}


def test_what_the_host_has_to_sample_stays_careful(start: Start) -> None:  # noqa: F811
    executor, maker = start(launches=True)
    maker.admit(0, random_prompt(6), GREEDY)
    maker.admit(1, random_prompt(6), SamplingParams(temperature=0.0, prompt_logprobs=1))
    maker.admit(2, random_prompt(6), SamplingParams(seed=1, typical_p=0.5))
    for row in ((1, 6, True), (2, 6, True)):
        handle = masked_step(executor, maker, [(0, 6 if row[0] == 1 else 1, True), row], {0: mask_of(30)})
        assert careful(handle)
        assert handle.result().row_tokens[0] == (30,)
    handle = executor.step(maker.plan([(0, 1, True)], [(31,)], masked_rows=(0,)))
    handle.masks([0, 0], [mask_of(31), mask_of(32)])
    assert careful(handle)
    assert handle.result().row_tokens == ((31, 32),)


def test_memory_that_masks_are_copied_from_is_written_again_late_enough() -> None:
    """Not before ``depth`` steps behind have used their own; it grows with the rows."""
    seen: list[torch.Tensor] = []

    def keep(logits: torch.Tensor, rows: torch.Tensor, masks: torch.Tensor) -> None:
        assert masks.data_ptr() % 16 == rows.data_ptr() % 16
        seen.append(masks)  # on a CPU, the memory itself
        reference.mask_logits(logits, rows, masks)

    masks = DeviceMasks(5, 70, keep, 2, torch.device("cpu"))
    for count in (1, 2, 5, 3, 1):
        logits = torch.zeros(5, 70)
        allowed = {row: (row * 13 + count) % 70 for row in reversed(range(count))}
        masks.apply(logits, {row: mask_of(token, width=12) for row, token in allowed.items()})
        for row in range(5):
            want = [allowed[row]] if row in allowed else list(range(70))
            assert torch.isfinite(logits[row]).nonzero().flatten().tolist() == want
        firsts = [masks[0, 0].data_ptr() for masks in seen[-3:]]
        assert len(set(firsts)) == len(firsts)
    masks.apply(logits, {})
    assert len(seen) == 5
    assert mask_bytes(5, 70) == 5 * 12 + 7 * 8 + 5 * 70 * 4
