"""Grammars through the core and a DeviceRunner on the CPU: answers have their form, are those of the plain Runner, and
what is without a form is as it is alone; logits never come to the host."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from executor_fixtures import random_prompt, save_tiny_model, tiny_spec
from structured_fixtures import END, make_constraints
from test_device_edits import HERE
from test_device_traffic import Replays

from penstock.core.engine import CoreLimits
from penstock.engine.mock_engine import mock_facts
from penstock.executor.graphs import StepGraphs
from penstock.executor.load import load_executor
from penstock.executor.local import LocalExecutor
from penstock.executor.sampler.sampler import Sampler
from penstock.mock.rig import RecordingChannel, make_core
from penstock.types.output import FailureKind, FinishReason
from penstock.types.request import GenerateRequest, SamplingParams
from penstock.types.structured import StructuredSpec

VOCAB = mock_facts().vocab_size
FORMS = ("[0-9]{4}-[0-9]{2}", "(yes|no), (yes|no|perhaps)", "[a-f]{1,30}", "x{12}")
CUTS: tuple[dict[str, Any], ...] = ({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.2, "top_p": 0.9})
EDITS: tuple[dict[str, Any], ...] = ({}, {"frequency_penalty": 0.3}, {"logprobs": 2})
Answers = dict[int, tuple[tuple[int, ...], FinishReason, FailureKind | None]]


def make_requests() -> list[GenerateRequest]:
    requests = []
    for request_id in range(24):
        form = StructuredSpec.regex(FORMS[request_id % 4]) if request_id % 3 else None
        fields = {**CUTS[request_id % 5 % 3], **EDITS[request_id % 7 % 3], "seed": request_id, "max_tokens": 24}
        if request_id == 7:
            fields["bad_token_ids"] = ((ord("x"),),)  # of its form nothing is left
        sampling = SamplingParams(structured=form, stop_token_ids=(END,), **fields)
        prompt = random_prompt(5 + request_id, seed=request_id)
        requests.append(GenerateRequest(request_id=request_id, prompt_token_ids=prompt, sampling=sampling))
    return requests


def answers_of(executor: LocalExecutor, max_num_seqs: int, requests: list[GenerateRequest]) -> tuple[Answers, int]:
    """And the number of rows that had a mask."""
    channel, constraints = RecordingChannel(), make_constraints()
    limits = CoreLimits(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=128, max_model_len=256, check_integrity=True
    )  # fmt: skip
    core = make_core(executor, limits, channel, constraints=constraints)
    for request in requests:
        core.add(request)
    while core.has_work:
        core.step(block=True)
    constraints.close()
    answers: Answers = {}
    for request in requests:
        terminal = channel.terminal(request.request_id)
        answers[request.request_id] = channel.tokens(request.request_id), terminal.reason, terminal.failure
    return answers, core.stats().num_masked_rows


@pytest.fixture
def start(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., LocalExecutor]]:
    pytest.importorskip("transformers")
    if HERE.extension_missing:
        pytest.skip(HERE.extension_missing)
    directory = tmp_path_factory.mktemp("llama")
    save_tiny_model("llama", directory, vocab_size=VOCAB)
    started: list[LocalExecutor] = []

    def make(*, launches: bool, depth: int) -> LocalExecutor:
        if launches:
            monkeypatch.setattr("penstock.executor.load.make_graphs", lambda built, spec: StepGraphs(Replays()))
        load = partial(load_executor, launches=launches)
        started.append(LocalExecutor(tiny_spec(directory, platform=HERE, depth=depth), load=load, launches=launches))
        return started[-1]

    yield make
    for executor in started:
        executor.stop()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_answers_have_their_form_and_are_those_of_the_host(
    start: Callable[..., LocalExecutor], monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    requests = make_requests()
    want, _ = answers_of(start(launches=False, depth=1), 1, requests)

    def refuse(*_: object) -> None:
        raise AssertionError("the host samples")

    monkeypatch.setattr(Sampler, "sample", refuse)
    got, num_masked_rows = answers_of(start(launches=True, depth=depth), 6, requests)
    assert got == want
    assert num_masked_rows > 100
    for request in requests:
        tokens, reason, failure = got[request.request_id]
        if request.request_id == 7:
            assert (reason, failure) == (FinishReason.ERROR, FailureKind.CONTRADICTION)
        elif request.sampling.structured is not None:
            assert (reason, failure) == (FinishReason.STOP, None)
            text = bytes(token for token in tokens if token < 256).decode()
            assert re.fullmatch(request.sampling.structured.text, text)
        else:
            assert failure is None
