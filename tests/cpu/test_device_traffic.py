"""Random traffic through the core and a DeviceRunner: every request gets what it gets alone from the plain Runner.

The cache is small, so that requests lose their seats; no step is finished before somebody waits for it, so that as many
are in flight as may be; rows of all kinds of sampling share them, some with token masks that come late, and drafts are
right, wrong and too long. Draws go
through the op that cuts and draws at once, and decode steps through a recorder that computes again what it recorded, so
that all happens as on a card. Layers compute every row by itself: answers are equal to the bit, and no draw is decided
by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import pytest
import torch
from executor_fixtures import VOCAB, random_prompt, save_tiny_model, tiny_spec

from penstock.attention.backends.reference_torch import ReferenceTorch
from penstock.attention.contract import AttentionSpec, GroupStep
from penstock.core.engine import CoreLimits, EngineCore
from penstock.executor.forward import Computed
from penstock.executor.graphs import StepGraphs
from penstock.executor.load import load_executor
from penstock.executor.local import LocalExecutor
from penstock.kernels import reference
from penstock.mock.rig import RecordingChannel, make_core, run_until_idle
from penstock.types.decision import Decision
from penstock.types.output import FinishReason
from penstock.types.request import GenerateRequest, SamplingParams
from penstock.types.structured import ConstraintStats, StructuredSpec

MAX_MODEL_LEN = 96
BLOCK_TOKENS = 8
BLOCK_BYTES = 6144  # of all groups
NUM_BLOCKS = 17  # a request may grow to 12
NUM_REQUESTS = 24
PLAN = ReferenceTorch.plan
Kinds = tuple[dict[str, Any], ...]
GREEDY: Kinds = ({"temperature": 0.0}, {"temperature": 0.0, "stop_token_ids": tuple(range(100, 110))})
# The device draws these alone.
DRAWN: Kinds = (
    {"temperature": 0.9},
    {"temperature": 1.2, "top_p": 0.9, "min_p": 0.02, "stop_token_ids": tuple(range(3, 9))},
    {"temperature": 0.8, "top_k": 7},
)
FORM = StructuredSpec.choice(["any"])  # what it means is the test's
MASKED: Kinds = (
    {"temperature": 0.0, "structured": FORM},
    {"temperature": 0.9, "top_k": 30, "structured": FORM},
    {"temperature": 0.7, "structured": FORM, "presence_penalty": 0.6, "logprobs": 1},
)
# Of these the host samples the logits.
CAREFUL: Kinds = (
    {"temperature": 0.8, "stop_token_ids": tuple(range(3, 90)), "min_tokens": 2},
    {"temperature": 1.0, "typical_p": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"temperature": 0.7, "presence_penalty": 0.5, "bad_token_ids": ((5,), (7, 9))},
    {"temperature": 0.0, "logprobs": 3},
    {"temperature": 0.9, "prompt_logprobs": 2},
)


class Answer:
    """All that a request got."""

    def __init__(self, channel: RecordingChannel, request_id: int) -> None:
        updates = channel.updates.get(request_id, [])
        self.tokens = channel.tokens(request_id)
        self.logprobs = [entry for update in updates for entry in update.logprobs]
        self.prompt_logprobs = [entry for update in updates for entry in update.prompt_logprobs]
        self.reason = channel.terminal(request_id).reason


class Replay:
    """Implements ``graphs.Recorded``."""

    def __init__(self, compute: Callable[[], Computed], answer: Computed) -> None:
        self._compute, self._answer = compute, answer

    def __len__(self) -> int:
        return 1

    def run(self) -> None:
        for kept, new in zip(self._answer, self._compute(), strict=True):
            kept.copy_(new)

    def run_timed(self) -> list[tuple[str, int]]:
        self.run()
        return []


class Replays:
    """Implements ``graphs.Recorder`` as one for cards does: what it records is computed, and has been before."""

    name = "replay"

    def record(self, compute: Callable[[], Computed], /) -> tuple[Replay, Computed]:
        compute()
        answer = compute()
        return Replay(compute, answer), answer


class Form:
    """Implements ``ports.Constraint``: of the tokens that may follow, one in four depends on all that came before."""

    done, problem, is_terminated = True, "", False

    def __init__(self, forms: Forms) -> None:
        self._forms = forms
        self._tokens: tuple[int, ...] = ()

    def open(self) -> None: ...

    def drop(self) -> None: ...

    def accept(self, token_ids: Sequence[int]) -> None:
        assert self not in self._forms.filling, "touched while its mask is filled"
        for token in token_ids:
            assert self.mask()[token // 8] >> token % 8 & 1, "not allowed"
            self._tokens = (*self._tokens, token)

    def mask(self, drafts: Sequence[int] = ()) -> bytes:
        dice = Random(repr((*self._tokens, *drafts)))
        return bytes(dice.getrandbits(8) & dice.getrandbits(8) for _ in range(4 * (VOCAB // 32 + 1)))


class Forms:
    """Implements ``ports.Constraints``. Masks are filled when they are waited for, as late as may be."""

    def __init__(self) -> None:
        self.filling: set[Form] = set()

    def constrain(self, sampling: SamplingParams) -> Form:
        return Form(self)

    def fill(self, rows: Sequence[tuple[Form | None, Sequence[int]]]) -> Callable[[], Sequence[bytes]]:
        self.filling |= {form for form, _ in rows if form is not None}

        def wait() -> list[bytes]:
            masks = []
            for form, drafts in rows:
                for count in range(len(drafts) + 1):
                    everything = b"\xff" * (4 * (VOCAB // 32 + 1))
                    masks.append(everything if form is None else form.mask(drafts[:count]))
            self.filling -= {form for form, _ in rows if form is not None}
            return masks

        return wait

    def stats(self) -> ConstraintStats:
        return ConstraintStats()

    def close(self) -> None: ...


class SomeRight:
    """Proposes the right tokens, the right ones with a wrong one in them, or nothing. Knows the answers."""

    def __init__(self, random: Random, requests: Sequence[GenerateRequest], alone: dict[int, Answer]) -> None:
        self._random = random
        self._whole = {r.request_id: (*r.prompt_token_ids, *alone[r.request_id].tokens) for r in requests}

    def propose(self, request_id: int, token_ids: Sequence[int], num_unknown: int, max_drafts: int) -> tuple[int, ...]:
        begin = len(token_ids) + num_unknown
        drafts = list(self._whole[request_id][begin : begin + self._random.randint(0, max_drafts)])
        if drafts and self._random.random() < 0.4:
            place = self._random.randrange(len(drafts))
            drafts[place] = (drafts[place] + 1) % VOCAB
        return tuple(drafts)


def make_requests(random: Random, count: int) -> list[GenerateRequest]:
    """Few beginnings, so that prefixes are shared. All kinds of sampling are in the last third only."""
    beginnings = [random_prompt(25, seed=seed) for seed in range(3)]
    requests = []
    for request_id in range(count):
        shared = random.choice(beginnings)[: random.choice((0, 8, 16, 25))]
        prompt = (*shared, *random_prompt(random.randint(1, 9), seed=request_id))
        phase = (GREEDY, GREEDY + DRAWN + MASKED, GREEDY + DRAWN + CAREFUL + MASKED)[request_id * 3 // count]
        kind = random.choice(phase)
        sampling = SamplingParams(
            **{**kind, "max_tokens": random.randint(2, 60)},
            seed=None if random.random() < 0.3 else request_id,
        )
        requests.append(GenerateRequest(request_id=request_id, prompt_token_ids=prompt, sampling=sampling))
    return requests


def answers_alone(executor: LocalExecutor, requests: Sequence[GenerateRequest]) -> dict[int, Answer]:
    channel = RecordingChannel()
    limits = CoreLimits(max_num_seqs=1, max_num_batched_tokens=128, max_model_len=MAX_MODEL_LEN, prefix_caching=False)
    core = make_core(executor, limits, channel, constraints=Forms())
    for request in requests:
        core.add(request)
        run_until_idle(core)
    return {request.request_id: Answer(channel, request.request_id) for request in requests}


def live(random: Random, core: EngineCore, requests: Sequence[GenerateRequest]) -> set[int]:
    """Requests arrive in bursts, nearly in their order, and some are taken back. Answers those."""
    requests = sorted(requests, key=lambda request: request.request_id + random.randrange(6))
    waiting, aborted = list(reversed(requests)), set()
    while waiting or core.has_work:
        for _ in range(random.randint(1, 4) if waiting and random.random() < 0.5 else 0):
            if waiting:
                core.add(waiting.pop())
        if random.random() < 0.02 and len(waiting) < len(requests):
            request = random.choice(requests[: len(requests) - len(waiting)])
            core.abort([request.request_id])
            aborted.add(request.request_id)
        core.step(block=random.random() < 0.8)
    return aborted


def linear_by_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    result = (x.unsqueeze(1) * weight).sum(dim=-1)
    return result if bias is None else result + bias


def plan_of_known_lengths(backend: ReferenceTorch, spec: AttentionSpec, step: GroupStep) -> Any:
    """As the backend plans, for a step of which the host knows what the device is told."""
    assert step.host is not None
    assert torch.equal(step.host.query_start, step.query_start)
    assert torch.equal(step.host.kv_lens, step.kv_lens)
    return PLAN(backend, spec, step)


@dataclass(frozen=True)
class Scene:
    """A model, requests, and what each of them gets alone."""

    start: Callable[..., LocalExecutor]
    requests: list[GenerateRequest]
    alone: dict[int, Answer]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp(request.param)
    save_tiny_model(request.param, directory)
    started: list[LocalExecutor] = []

    def start(*, launches: bool, **changes: Any) -> LocalExecutor:
        changes |= {"max_model_len": MAX_MODEL_LEN, "block_size": BLOCK_TOKENS}
        changes |= {"attention_backend": "reference_torch", "linear_backend": "dense"}
        spec = tiny_spec(directory, **changes)
        executor = LocalExecutor(spec, load=partial(load_executor, launches=launches), launches=launches)
        started.append(executor)
        return executor

    with pytest.MonkeyPatch.context() as patch:
        op = (reference.sample, Decision("op sample float32", "reference", "the test's"))
        patch.setattr("penstock.executor.load.choose_sample_op", lambda platform: op)
        patch.setattr("penstock.quantization.backends.linear_dense.F.linear", linear_by_rows)
        patch.setattr("penstock.executor.load.make_graphs", lambda built, spec: StepGraphs(Replays()))
        patch.setattr("penstock.executor.device_answers.Answers.done", lambda answers: False)
        requests = make_requests(Random(7), NUM_REQUESTS)
        alone = answers_alone(start(launches=False, depth=1), requests)
        patch.setattr(ReferenceTorch, "plan", plan_of_known_lengths)
        yield Scene(start, requests, alone)
    for executor in started:
        executor.stop()


@pytest.mark.parametrize(
    ("depth", "budget", "drafts", "caching"),
    [(1, 128, 0, True), (2, 24, 0, True), (2, 128, 2, True), (3, 40, 0, False)],
)
def test_every_request_gets_what_it_gets_alone(
    scene: Scene, depth: int, budget: int, drafts: int, caching: bool
) -> None:
    random = Random(100 * depth + budget)
    requests, alone = scene.requests, scene.alone
    executor = scene.start(
        launches=True, depth=depth, max_num_batched_tokens=budget, kv_cache_memory=NUM_BLOCKS * BLOCK_BYTES
    )
    limits = CoreLimits(
        max_num_seqs=6,
        max_num_batched_tokens=budget,
        max_model_len=MAX_MODEL_LEN,
        prefix_caching=caching,
        check_integrity=True,
        num_draft_tokens=drafts,
    )
    channel = RecordingChannel()
    drafter = SomeRight(random, requests, alone) if drafts else None
    core = make_core(executor, limits, channel, drafter=drafter, constraints=Forms())
    aborted = live(random, core, requests)
    core.check_integrity()
    assert core.stats().kv_usage == 0
    assert core.stats().num_preemptions >= 3
    assert channel.late_updates == 0
    for request in requests:
        got, want = Answer(channel, request.request_id), alone[request.request_id]
        assert got.tokens == want.tokens[: len(got.tokens)], request
        assert got.logprobs == want.logprobs[: len(got.logprobs)], request
        assert got.prompt_logprobs == want.prompt_logprobs[: len(got.prompt_logprobs)], request
        if got.reason is FinishReason.ABORT:
            assert request.request_id in aborted
            continue
        assert (got.reason, len(got.tokens)) == (want.reason, len(want.tokens))
        assert len(got.logprobs) == len(want.logprobs)
        assert len(got.prompt_logprobs) == len(want.prompt_logprobs)
    assert len(aborted) < len(requests) // 2
