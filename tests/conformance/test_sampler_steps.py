"""Every step of the sampler pipeline against its plain per-row reference; a step without a row here fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from penstock.executor.sampler.masks import apply_bitmask
from penstock.executor.sampler.rows import SampleRow, SamplingNeed, SeatSampling
from penstock.executor.sampler.sampler import STEPS, Sampler
from penstock.kernels.reference import sampling as reference
from penstock.types.request import SamplingParams

VOCAB = 311

Reference = Callable[[list[float], SamplingParams, list[int], list[int]], list[float]]

# step name -> parameters that need it, and what they mean for (row, params, prompt, output)
ROWS: dict[str, tuple[list[dict], Reference]] = {
    "allowed_tokens": (
        [{"allowed_token_ids": (3, 7, 7, 310, 9999)}, {"allowed_token_ids": (5,)}],
        lambda row, p, prompt, output: reference.allowed_tokens(row, p.allowed_token_ids),
    ),
    "bad_tokens": (
        [
            {"bad_token_ids": ((4,), (9, 5), (8, 9, 6), (1, 2, 3, 4, 5, 6, 8, 9, 77), (9999,))},
            {"bad_token_ids": ((8, 9, 10), (9, 9, 11))},
            {"bad_token_ids": ((12,),)},
        ],
        lambda row, p, prompt, output: reference.bad_tokens(row, p.bad_token_ids, prompt + output),
    ),
    "min_tokens": (
        [{"min_tokens": 5, "stop_token_ids": (2, 300)}, {"min_tokens": 1, "stop_token_ids": (0,)}],
        lambda row, p, prompt, output: reference.min_tokens(row, p.stop_token_ids, len(output), p.min_tokens),
    ),
    "logit_bias": (
        [{"logit_bias": {1: 5.0, 17: -100.0, 310: 0.25, 9999: 3.0}}],
        lambda row, p, prompt, output: reference.logit_bias(row, p.logit_bias),
    ),
    "penalties": (
        [
            {"repetition_penalty": 1.3},
            {"presence_penalty": 0.7, "frequency_penalty": -0.4},
            {"repetition_penalty": 0.8, "presence_penalty": -2.0, "frequency_penalty": 1.5},
        ],
        lambda row, p, prompt, output: reference.penalties(
            row,
            prompt,
            output,
            repetition=p.repetition_penalty,
            presence=p.presence_penalty,
            frequency=p.frequency_penalty,
        ),
    ),
    "temperature": (
        [{"temperature": 0.7}, {"temperature": 3.0}, {"temperature": 1e-60}],
        lambda row, p, prompt, output: reference.temperature(row, max(p.temperature, 1e-30)),
    ),
    "min_p": (
        [{"min_p": 0.05}, {"min_p": 1.0}, {"min_p": 1e-60}],
        lambda row, p, prompt, output: reference.min_p(row, p.min_p),
    ),
    "top_k": (
        [{"top_k": 2}, {"top_k": 40}, {"top_k": VOCAB - 1}],
        lambda row, p, prompt, output: reference.top_k(row, p.top_k),
    ),
    "top_p": (
        [{"top_p": 0.9}, {"top_p": 1e-6}, {"top_p": 0.999}, {"top_p": 0.5}],
        lambda row, p, prompt, output: reference.top_p(row, p.top_p),
    ),
    "typical_p": (
        [{"typical_p": 0.9}, {"typical_p": 0.2}, {"typical_p": 1e-6}],
        lambda row, p, prompt, output: reference.typical_p(row, p.typical_p),
    ),
}

PROMPT = [1, 2, 3, 2, 300]
OUTPUT = [5, 6, 5, 8, 9]


def sample_row(seat: SeatSampling, prompt: Sequence[int], output: Sequence[int], num_drafts: int = 0) -> SampleRow:
    tokens = np.array([*prompt, *output], dtype=np.int32)
    return SampleRow(seat, tokens, len(tokens) - num_drafts)


def rows_of_logits(kind: str, count: int) -> torch.Tensor:
    noise = torch.Generator().manual_seed(7)
    if kind == "peaked":
        return torch.randn(count, VOCAB, generator=noise) * 6
    if kind == "flat":
        return torch.randn(count, VOCAB, generator=noise) * 0.01
    if kind == "tied":
        return torch.randint(-3, 4, (count, VOCAB), generator=noise).float()
    cut = torch.randn(count, VOCAB, generator=noise) * 3  # after an earlier step has forbidden most tokens
    return cut.masked_fill(torch.rand(count, VOCAB, generator=noise) < 0.9, float("-inf"))


def test_every_step_has_a_row_here() -> None:
    assert [step.name for step in STEPS] == list(ROWS)


@pytest.mark.parametrize("kind", ["peaked", "flat", "tied", "cut"])
@pytest.mark.parametrize("num_output", [0, 5])
@pytest.mark.parametrize("name", list(ROWS))
def test_step_means_what_its_reference_says(name: str, num_output: int, kind: str) -> None:
    """All parameter sets in one batch, beside a row that does not need the step and must stay untouched."""
    step = next(step for step in STEPS if step.name == name)
    variants, meaning = ROWS[name]
    params = [SamplingParams(**variant) for variant in variants]
    logits = rows_of_logits(kind, len(params) + 1)
    original = logits.clone()
    seats = [Sampler(VOCAB).admit(1, p, len(PROMPT)) for p in params]
    own = [seat.prepared[STEPS.index(step)] for seat in seats]
    assert all(one is not None for one in own)
    output = OUTPUT[:num_output]
    step.apply(logits, range(len(params)), [sample_row(seat, PROMPT, output) for seat in seats], own)
    assert torch.equal(logits[-1], original[-1])
    for got, row, p in zip(logits, original.double().tolist(), params, strict=False):
        want = meaning(row, p, PROMPT, output)
        assert_same_distribution(got.double().tolist(), want, shifted=name == "temperature")


def assert_same_distribution(got: list[float], want: list[float], *, shifted: bool) -> None:
    kept_got = {t for t, value in enumerate(got) if value > float("-inf")}
    kept_want = {t for t, value in enumerate(want) if value > float("-inf")}
    if shifted:  # the temperature step moves the maximum to 0, which leaves the distribution as it is
        best = max(want)
        want = [value - best for value in want]
        kept_got, kept_want = ({t for t in kept if want[t] > -1e20} for kept in (kept_got, kept_want))
    assert kept_got == kept_want
    for t in kept_want:
        assert math.isclose(got[t], want[t], rel_tol=2e-6, abs_tol=2e-6), (t, got[t], want[t])


@pytest.mark.parametrize("name", list(ROWS))
def test_neutral_parameters_do_not_need_the_step(name: str) -> None:
    step = next(step for step in STEPS if step.name == name)
    need = SamplingNeed(params=SamplingParams(), num_prompt_tokens=1, vocab_size=VOCAB)
    assert step.prepare(need) is None


@pytest.mark.parametrize("name", ["temperature", "min_p", "top_k", "top_p", "typical_p"])
def test_greedy_requests_do_not_need_the_cuts(name: str) -> None:
    step = next(step for step in STEPS if step.name == name)
    for variant in ROWS[name][0]:
        params = SamplingParams(**{**variant, "temperature": 0.0})
        assert step.prepare(SamplingNeed(params=params, num_prompt_tokens=1, vocab_size=VOCAB)) is None


@pytest.mark.parametrize("num_words", [(VOCAB + 31) // 32, 3, 20])
def test_bitmask_means_what_its_reference_says(num_words: int) -> None:
    """Also masks that are shorter or longer than the vocabulary."""
    mask = np.random.default_rng(3).bytes(4 * num_words)
    row = rows_of_logits("peaked", 1)[0]
    want = reference.bitmask(row.tolist(), mask)
    apply_bitmask(row, mask)
    assert row.tolist() == want
