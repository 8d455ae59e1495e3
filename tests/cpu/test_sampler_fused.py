"""The op that cuts and draws at once, in the sampler: it gives the steps' tokens, and is chosen with reasons."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from penstock.executor.sampler.fused import choose_sample_op
from penstock.executor.sampler.rows import SampleRow
from penstock.executor.sampler.sampler import NOT_FINITE, Sampler
from penstock.platforms.probe import probe_platform
from penstock.types.request import SamplingParams

VOCAB = 2003
HERE = probe_platform()
OP, DECISION = choose_sample_op(HERE)
needs_op = pytest.mark.skipif(OP is None, reason=f"{DECISION.subject}: {DECISION.why}")

VARIANTS = (
    {},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 1.4, "top_k": 12},
    {"min_p": 0.05},
    {"top_k": 50, "top_p": 0.5, "min_p": 0.01},
    {"temperature": 0.9, "typical_p": 0.7},
    {"temperature": 0.0},
    {"repetition_penalty": 1.3, "top_p": 0.8},
    {"allowed_token_ids": (1, 5, 900), "temperature": 2.0},
    {"logit_bias": {7: 9.0}, "logprobs": 2},
)


def _rows(sampler: Sampler, variants: tuple[dict, ...]) -> list[SampleRow]:
    tokens = np.arange(9, dtype=np.int32)
    params = [SamplingParams(seed=i, **variant) for i, variant in enumerate(variants)]
    return [SampleRow(sampler.admit(i, p, 5), tokens, len(tokens)) for i, p in enumerate(params)]


@needs_op
@pytest.mark.parametrize("variants", [VARIANTS, VARIANTS[:5], VARIANTS[1:2]], ids=["mixed", "plain", "one"])
def test_the_op_draws_what_the_steps_draw(variants: tuple[dict, ...]) -> None:
    variants = variants * 20
    logits = torch.randn(len(variants), VOCAB, generator=torch.Generator().manual_seed(1)) * 4
    answers = []
    for op in (None, OP):
        sampler = Sampler(VOCAB, op=op)
        answers.append(sampler.sample(logits.clone(), _rows(sampler, variants)))
    assert not answers[0].failed
    assert answers[0] == answers[1]


@needs_op
def test_rows_that_are_not_finite_fail_alone() -> None:
    sampler = Sampler(VOCAB, op=OP)
    logits = torch.randn(4, VOCAB)
    logits[1, 3], logits[2, 0] = float("nan"), float("-inf")
    answer = sampler.sample(logits, _rows(sampler, ({},) * 4))
    assert answer.failed == {1: NOT_FINITE, 2: NOT_FINITE}


@needs_op
@pytest.mark.parametrize("num_fused", [4, 3])
def test_masked_rows_are_copied_for_the_op_only_beside_others(num_fused: int) -> None:
    seen: list[int] = []

    def op(logits: torch.Tensor, *more: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(logits.data_ptr())
        return OP(logits, *more)

    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1))
    mask = np.packbits(np.arange(VOCAB) % 7 == 0, bitorder="little").tobytes()
    answers = []
    for one in (None, op):
        sampler = Sampler(VOCAB, op=one)
        variants = ({},) * num_fused + ({"typical_p": 0.7},) * (4 - num_fused)
        rows = [dataclasses.replace(row, mask=mask) for row in _rows(sampler, variants)]
        own = logits.clone()
        answers.append(sampler.sample(own, rows))
    assert answers[0] == answers[1]
    assert all(token % 7 == 0 for token in answers[1].tokens)
    assert (seen == [own.data_ptr()]) == (num_fused == 4)


def test_without_the_extension_the_steps_draw_and_the_decision_says_why() -> None:
    op, decision = choose_sample_op(dataclasses.replace(HERE, extension_missing="it was not built"))
    assert op is None
    native = [rejected for rejected in decision.rejected if rejected.name.startswith("native_")]
    assert native
    assert all("it was not built" in rejected.reasons for rejected in native)
