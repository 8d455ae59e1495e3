"""No logits and no parameters in range make the sampler raise, and a row's answer never depends on its neighbours."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from drawn_examples import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.executor.sampler.rows import SampleRow
from penstock.executor.sampler.sampler import Sampler
from penstock.types.request import SamplingParams

VOCABS = (1, 2, 7, 130)
INFINITY = float("inf")
EXTREME = (0.0, -0.0, 1e-45, 1.0, -1.0, 88.0, 1e4, -1e4, 1e30, -1e30, 3.4028234e38, -3.4028234e38, 1e37, -1e37)
POISON = (INFINITY, -INFINITY, math.nan)

token_ids = st.integers(-3, 140)


def often(default: Any, *others: st.SearchStrategy) -> st.SearchStrategy:
    """The neutral value half of the time: long mixtures hide what two parameters do alone."""
    return st.one_of(st.just(default), *others)


def share(low: float = 0.0) -> st.SearchStrategy:
    return st.floats(low, 1.0, exclude_min=low == 0.0) | st.sampled_from((5e-324, 1e-45, 1e-30, 0.5, 1.0 - 2**-53))


def bounded(low: float, high: float) -> st.SearchStrategy:
    return st.sampled_from((low, high)) | st.floats(low, high)


parameters = st.fixed_dictionaries(
    {
        "temperature": often(1.0, bounded(0.0, 100.0), st.sampled_from((5e-324, 1e-45, 1e-38, 1e-30, 1e-7))),
        "top_k": often(0, st.sampled_from((-1, 1, 2, 2**63 - 1)), st.integers(0, 140)),
        "top_p": often(1.0, share()),
        "min_p": often(0.0, share()),
        "typical_p": often(1.0, share()),
        "repetition_penalty": often(1.0, bounded(0.01, 100.0)),
        "presence_penalty": often(0.0, bounded(-2.0, 2.0)),
        "frequency_penalty": often(0.0, bounded(-2.0, 2.0)),
        "logit_bias": often(
            {}, st.dictionaries(token_ids, bounded(-100.0, 100.0) | st.integers(-100, 100), max_size=4)
        ),
        "allowed_token_ids": often((), st.lists(token_ids, max_size=5).map(tuple)),
        "bad_token_ids": often(
            (), st.lists(st.lists(token_ids, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple)
        ),
        "min_tokens": often(0, st.integers(0, 5)),
        "stop_token_ids": st.lists(token_ids, max_size=4).map(tuple),
        "seed": often(None, st.integers(-(2**63), 2**63 - 1)),
        "logprobs": often(None, st.integers(0, 20)),
    }
)


@st.composite
def logits_rows(draw: st.DrawFn, vocab: int) -> torch.Tensor:
    """One row: all equal, one-hot, noise of any size, or anything; perhaps with poison in it."""
    value = draw(st.sampled_from(EXTREME) | st.floats(width=32, allow_nan=False, allow_infinity=False))
    kind = draw(st.sampled_from(("equal", "one-hot", "noise", "mixture")))
    if kind == "equal":
        row = torch.full((vocab,), value)
    elif kind == "one-hot":
        row = torch.full((vocab,), draw(st.sampled_from(EXTREME)))
        row[draw(st.integers(0, vocab - 1))] = value
    elif kind == "noise":
        scale = draw(st.sampled_from((1e-30, 1.0, 30.0, 1e30)))
        row = torch.randn(vocab, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * scale
    else:
        row = torch.tensor([EXTREME[(place * 7 + len(EXTREME)) % len(EXTREME)] for place in range(vocab)])
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        row[draw(st.integers(0, vocab - 1))] = draw(st.sampled_from(POISON))
    return row


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, list[SamplingParams], list[list[int]], list[bytes | None]]:
    vocab = draw(st.sampled_from(VOCABS))
    count = draw(st.integers(1, 4))
    logits = torch.stack([draw(logits_rows(vocab)) for _ in range(count)])
    params = [SamplingParams(**draw(parameters)) for _ in range(count)]
    tokens = st.lists(st.integers(0, vocab - 1), min_size=2, max_size=9)
    masks = st.none() | st.none() | st.binary(max_size=vocab // 8 + 4)
    return logits, params, [draw(tokens) for _ in range(count)], [draw(masks) for _ in range(count)]


def run(logits: torch.Tensor, params: Any, histories: Any, masks: Any, only: range) -> list[tuple]:
    sampler = Sampler(logits.shape[1], seed=3)
    rows = [
        SampleRow(sampler.admit(i, params[i], 2), np.array(histories[i], dtype=np.int32), len(histories[i]), masks[i])
        for i in only
    ]
    answer = sampler.sample(logits[list(only)].clone(), rows)
    return [
        (answer.failed.get(at), None if at in answer.failed else token, repr(answer.logprobs.get(at)))
        for at, token in enumerate(answer.tokens)
    ]


@given(batch=batches())
@settings(max_examples=num_examples(400), deadline=None)
def test_nothing_makes_the_sampler_raise_and_rows_fail_alone(batch) -> None:
    logits, params, _, masks = batch
    together = run(*batch, range(len(logits)))
    for index, (failure, token, logprobs) in enumerate(together):
        assert run(*batch, range(index, index + 1)) == [(failure, token, logprobs)]
        if not bool(torch.isfinite(logits[index]).all()):
            assert failure is not None
        if failure is not None:
            continue
        allowed = params[index].allowed_token_ids
        assert 0 <= token < logits.shape[1]
        assert not allowed or token in allowed
        assert (token,) not in params[index].bad_token_ids
        assert masks[index] is None or masks[index][token // 8] >> token % 8 & 1
        assert (logprobs != "None") == (params[index].logprobs is not None)
