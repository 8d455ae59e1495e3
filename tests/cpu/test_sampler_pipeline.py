"""The sampler as a whole: exact distributions, independence from the batch, seeds, failures, log-probabilities."""

from __future__ import annotations

import functools
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from penstock.executor.sampler.counter_random import derived_seed, uniform
from penstock.executor.sampler.draw import draw
from penstock.executor.sampler.fused import choose_sample_op
from penstock.executor.sampler.penalties import TokenCounts
from penstock.executor.sampler.rows import SampleRow
from penstock.executor.sampler.sampler import EMPTY_MASK, NO_TOKEN_LEFT, NOT_FINITE, OVERFLOW, Sampler
from penstock.kernels.reference import sampling as reference
from penstock.platforms.probe import probe_platform
from penstock.types.request import SamplingParams

VOCAB = 997


@pytest.fixture(params=["steps", "op"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds with the steps alone, and with the op that cuts and draws at once."""
    if request.param == "steps":
        return
    op, decision = choose_sample_op(probe_platform())
    if op is None:
        pytest.skip("; ".join(reason for rejected in decision.rejected for reason in rejected.reasons))
    monkeypatch.setitem(globals(), "Sampler", functools.partial(Sampler, op=op))


def make_row(sampler: Sampler, params: SamplingParams, tokens: list[int], num_prompt: int = 3, **more) -> SampleRow:
    seat = sampler.admit(more.pop("request_id", 1), params, num_prompt)
    return SampleRow(seat, np.array(tokens, dtype=np.int32), more.pop("num_committed", len(tokens)), **more)


def logits_of(count: int, seed: int = 0, scale: float = 3.0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def random_params(dice: random.Random) -> SamplingParams:
    """Any mixture of features, many of them absent."""

    def maybe(value, absent):
        return value if dice.random() < 0.4 else absent

    return SamplingParams(
        temperature=dice.choice([0.0, 0.3, 1.0, 1.0, 1.7]),
        top_k=maybe(dice.choice([1, 5, 200]), 0),
        top_p=maybe(dice.uniform(0.2, 0.99), 1.0),
        min_p=maybe(dice.uniform(0.001, 0.3), 0.0),
        typical_p=maybe(dice.uniform(0.2, 0.95), 1.0),
        repetition_penalty=maybe(dice.uniform(0.7, 1.5), 1.0),
        presence_penalty=maybe(dice.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(dice.uniform(-2, 2), 0.0),
        logit_bias=maybe({dice.randrange(VOCAB): dice.uniform(-9, 9) for _ in range(4)}, {}),
        allowed_token_ids=maybe(tuple(dice.sample(range(VOCAB), 60)), ()),
        bad_token_ids=maybe(((dice.randrange(VOCAB),), (5, 6)), ()),
        min_tokens=maybe(4, 0),
        stop_token_ids=(2, 7),
        seed=dice.randrange(-(2**63), 2**63),
        logprobs=maybe(dice.randrange(0, 6), None),
    )


def test_answers_do_not_depend_on_the_batch() -> None:
    """Bit by bit: 40 mixed rows in one batch, in another order, and each alone."""
    dice = random.Random(5)
    params = [random_params(dice) for _ in range(40)]
    histories = [[dice.randrange(VOCAB) for _ in range(dice.randrange(3, 30))] for _ in params]
    logits = logits_of(40)

    def run(order: list[int]) -> dict[int, tuple]:
        sampler = Sampler(VOCAB)
        rows = [make_row(sampler, params[i], histories[i], request_id=i) for i in order]
        answer = sampler.sample(logits[torch.tensor(order)].clone(), rows)
        assert not answer.failed
        return {i: (answer.tokens[at], answer.logprobs.get(at)) for at, i in enumerate(order)}

    together = run(list(range(40)))
    assert run(list(reversed(range(40)))) == together
    for i in range(40):
        assert run([i]) == {i: together[i]}


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.4, "top_k": 12},
        {"top_p": 0.8},
        {"min_p": 0.1, "temperature": 2.0},
        {"typical_p": 0.6},
        {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    ],
)
def test_draws_follow_the_exact_distribution(variant: dict) -> None:
    """Chi-square over 20,000 draws (positions of one seed) against the reference's probabilities."""
    vocab, draws = 41, 20_000
    params = SamplingParams(seed=11, **variant)
    row = logits_of(1, seed=3, scale=1.5, vocab=vocab)
    prompt = [1, 2, 3]
    want = row[0].double().tolist()
    want = reference.penalties(want, prompt, [], repetition=params.repetition_penalty)
    want = reference.temperature(want, params.temperature)
    want = reference.min_p(want, params.min_p)
    want = reference.top_k(want, params.top_k or vocab)
    want = reference.top_p(want, params.top_p)
    probs = reference.softmax(reference.typical_p(want, params.typical_p))

    sampler = Sampler(vocab)
    seat = sampler.admit(1, params, 3)
    tokens = np.resize(np.array(prompt, dtype=np.int32), draws)  # repeats the prompt's tokens: no new penalty
    counted = Counter[int]()
    for start in range(0, draws, 2000):
        rows = [SampleRow(seat, tokens[: 3 + position], 3) for position in range(start, start + 2000)]
        if params.repetition_penalty != 1.0:
            rows = [
                SampleRow(sampler.admit(p, _with_seed(params, p), 3), tokens[:3], 3) for p in range(start, start + 2000)
            ]
        counted.update(sampler.sample(row.repeat(2000, 1), rows).tokens)
    assert sum(counted[t] for t, p in enumerate(probs) if p == 0) == 0
    expected = [(counted[t], p * draws) for t, p in enumerate(probs) if p > 0]
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in expected)
    freedom = len(expected) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) + 5, (statistic, freedom)


def _with_seed(params: SamplingParams, seed: int) -> SamplingParams:
    return SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        seed=seed,
    )


def test_whole_pipeline_agrees_with_the_references_in_order() -> None:
    dice = random.Random(8)
    for case in range(60):
        params = random_params(dice)
        prompt = [dice.randrange(VOCAB) for _ in range(3)]
        output = [dice.randrange(VOCAB) for _ in range(dice.randrange(0, 9))]
        row = logits_of(1, seed=case)
        want = row[0].double().tolist()
        if params.allowed_token_ids:
            want = reference.allowed_tokens(want, params.allowed_token_ids)
        want = reference.bad_tokens(want, params.bad_token_ids, prompt + output)
        want = reference.min_tokens(want, params.stop_token_ids, len(output), params.min_tokens)
        want = reference.logit_bias(want, params.logit_bias)
        want = reference.penalties(
            want,
            prompt,
            output,
            repetition=params.repetition_penalty,
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
        )
        if params.greedy or params.top_k == 1:
            token = max(range(VOCAB), key=want.__getitem__)
        else:
            want = reference.min_p(reference.temperature(want, params.temperature), params.min_p)
            want = reference.top_p(reference.top_k(want, params.top_k or VOCAB), params.top_p)
            number = reference.splitmix_uniform(params.seed % 2**64, len(output))
            token = reference.draw(reference.typical_p(want, params.typical_p), number)
        sampler = Sampler(VOCAB)
        assert sampler.sample(row, [make_row(sampler, params, prompt + output)]).tokens == [token], params


def test_random_numbers_are_those_of_the_reference() -> None:
    seeds = [0, 1, 2**63, 2**64 - 1, 12345]
    for seed in seeds:
        positions = np.arange(50, dtype=np.uint64)
        got = uniform(np.full(50, seed, dtype=np.uint64), positions).tolist()
        assert got == [reference.splitmix_uniform(seed, position) for position in range(50)]


def test_random_numbers_are_uniform_across_seeds_and_positions() -> None:
    for numbers in (
        uniform(np.full(50_000, 3, dtype=np.uint64), np.arange(50_000, dtype=np.uint64)),
        uniform(np.arange(50_000, dtype=np.uint64), np.zeros(50_000, dtype=np.uint64)),
        uniform(np.array([derived_seed(0, i) for i in range(20_000)], dtype=np.uint64), np.zeros(20_000, np.uint64)),
    ):
        counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
        mean = len(numbers) / 100
        assert ((counts - mean) ** 2 / mean).sum() < 99 + 5 * math.sqrt(2 * 99)
        pairs = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
        assert abs(pairs) < 5 / math.sqrt(len(numbers))


@pytest.mark.parametrize("vocab", [1, 127, 128, 1000, 49152])
def test_draws_invert_the_cumulated_distribution(vocab: int) -> None:
    """At both ends, at every boundary of a few tokens, and never a token without mass."""
    logits = logits_of(1, vocab=vocab)
    logits[0, 1::3] = float("-inf")
    if vocab > 500:
        logits[0, 256:384] = float("-inf")  # a whole piece without mass
        logits[0, vocab - 200 :] = float("-inf")
    probs = reference.softmax(logits[0].double().tolist())
    ends = np.cumsum(probs)
    inner = [float(end) for end in ends[:: max(1, vocab // 20)] if 1e-9 < end < 1 - 1e-9]
    numbers = [0.0, 2.0**-53, 1 - 2.0**-53, 0.5, *(end * (1 + side) for end in inner for side in (-1e-5, 1e-5))]
    numbers = [number for number in numbers if number < 1]
    got = draw(logits.repeat(len(numbers), 1), np.array(numbers)).tolist()
    for number, token in zip(numbers, got, strict=True):
        assert probs[token] > 0
        assert ends[token] - probs[token] - 1e-6 <= number <= ends[token] + 1e-6
    assert got[0] == 0
    assert got[2] == max(t for t, p in enumerate(probs) if p > 0)


def test_large_vocabularies_do_not_depend_on_the_batch_or_the_threads() -> None:
    """Nor does a failure in a later tile land on another row."""
    vocab = 49152
    logits = logits_of(13, vocab=vocab)
    logits[11, 5] = float("nan")
    variants = [
        {},
        {"top_p": 0.9},
        {"temperature": 0.7, "top_k": 40},
        {"min_p": 0.05},
        {"typical_p": 0.8, "logprobs": 5},
    ]
    params = [SamplingParams(seed=i, **variants[i % 5]) for i in range(13)]

    def run(indices: list[int], threads: int) -> list:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        sampler = Sampler(vocab)
        answer = sampler.sample(logits[indices], [make_row(sampler, params[i], [1, 2, 3]) for i in indices])
        torch.set_num_threads(before)
        return [(at in answer.failed or token, answer.logprobs.get(at)) for at, token in enumerate(answer.tokens)]

    together = run(list(range(13)), 2)  # more than one tile
    assert run(list(range(13)), 1) == together
    assert [run([i], 2)[0] for i in range(13)] == together
    assert [i for i, (token, _) in enumerate(together) if token is True] == [11]


def test_seeds_repeat_and_requests_without_one_differ() -> None:
    def tokens(engine_seed: int, request_id: int, seed: int | None) -> list[int]:
        sampler = Sampler(VOCAB, engine_seed)
        seat = sampler.admit(request_id, SamplingParams(seed=seed), 1)
        rows = [SampleRow(seat, np.zeros(1 + n, dtype=np.int32), 1 + n) for n in range(20)]
        return sampler.sample(logits_of(1, scale=0.1).repeat(20, 1), rows).tokens

    assert tokens(0, 1, 9) == tokens(5, 2, 9)  # the seed alone decides
    assert tokens(0, 1, None) == tokens(0, 1, None)
    assert len({tuple(tokens(e, r, None)) for e in range(3) for r in range(3)}) == 9
    assert tokens(0, 1, 9) != tokens(0, 1, 10)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(seed=1, top_p=0.9, logprobs=2)])
def test_non_finite_logits_fail_their_row_only(params: SamplingParams, poison: float) -> None:
    sampler = Sampler(VOCAB)
    logits = logits_of(3)
    clean = sampler.sample(logits.clone(), [make_row(sampler, params, [1, 2, 3]) for _ in range(3)])
    logits[1, 400] = poison
    answer = sampler.sample(logits, [make_row(sampler, params, [1, 2, 3]) for _ in range(3)])
    assert answer.failed == {1: NOT_FINITE}
    assert (answer.tokens[0], answer.tokens[2]) == (clean.tokens[0], clean.tokens[2])
    assert answer.logprobs == {i: entry for i, entry in clean.logprobs.items() if i != 1}


def test_large_finite_logits_are_no_failure() -> None:
    sampler = Sampler(VOCAB)
    logits = torch.full((1, VOCAB), 3e38)
    logits[0, 17] = 3.1e38
    assert sampler.sample(logits, [make_row(sampler, SamplingParams(temperature=0.0), [1, 2, 3])]).tokens == [17]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_masks_leave_nothing_fails_alone(temperature: float) -> None:
    sampler = Sampler(VOCAB)
    stuck = SamplingParams(temperature=temperature, allowed_token_ids=(7,), bad_token_ids=((7,),))
    outside = SamplingParams(temperature=temperature, allowed_token_ids=(VOCAB + 5,))
    fine = SamplingParams(temperature=temperature, allowed_token_ids=(7,))
    rows = [make_row(sampler, p, [1, 2, 3]) for p in (stuck, fine, outside)]
    rows.append(make_row(sampler, SamplingParams(temperature=temperature), [1, 2, 3], mask=bytes(VOCAB // 8 + 4)))
    answer = sampler.sample(logits_of(4), rows)
    assert answer.failed == {0: NO_TOKEN_LEFT, 2: NO_TOKEN_LEFT, 3: EMPTY_MASK}
    assert [answer.failed[row].by_request for row in (0, 2, 3)] == [True, True, False]
    assert answer.tokens[1] == 7


@pytest.mark.parametrize("more", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"typical_p": 0.9}, {"logprobs": 2}])
def test_penalties_that_overflow_fail_their_row_alone(more: dict) -> None:
    """Finite logits near float32's end, divided by a penalty: an infinity, and NaN in every softmax."""
    sampler = Sampler(VOCAB)
    params = [SamplingParams(seed=1, repetition_penalty=penalty, **more) for penalty in (1.0, 0.01, 1.1)]
    logits = logits_of(3)
    logits[:, 1] = 3e37
    answer = sampler.sample(logits, [make_row(sampler, p, [1, 2, 3]) for p in params])
    assert answer.failed == {1: OVERFLOW}
    assert (answer.tokens[0], answer.tokens[2]) == (1, 1)
    assert list(answer.logprobs) == ([0, 2] if "logprobs" in more else [])


def test_the_first_reason_of_a_row_stays() -> None:
    sampler = Sampler(VOCAB)
    params = SamplingParams(allowed_token_ids=(7,), bad_token_ids=((7,),))
    logits = logits_of(1)
    logits[0, 3] = float("nan")
    assert sampler.sample(logits, [make_row(sampler, params, [1, 2, 3])]).failed == {0: NOT_FINITE}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_bitmasks_restrict_their_row(temperature: float) -> None:
    sampler = Sampler(VOCAB)
    mask = bytearray(4 * ((VOCAB + 31) // 32))
    for token in (33, 990):
        mask[token // 8] |= 1 << (token % 8)
    params = SamplingParams(temperature=temperature, seed=4)
    rows = [make_row(sampler, params, [1, 2, 3]), make_row(sampler, params, [1, 2, 3], mask=bytes(mask))]
    logits = logits_of(1).repeat(2, 1)
    logits[:, 33] = logits[:, 990] - 50
    answer = sampler.sample(logits, rows)
    assert answer.tokens[1] == 990
    assert answer.tokens[0] != 990


def test_logprobs_are_raw_and_ranked() -> None:
    """Penalties, bias and temperature change the token, never the reported distribution."""
    sampler = Sampler(VOCAB)
    logits = logits_of(1)
    want = reference.log_softmax(logits[0].double().tolist())
    order = sorted(range(VOCAB), key=lambda t: -want[t])
    params = SamplingParams(temperature=0.0, logit_bias={order[6]: 100.0}, logprobs=4, repetition_penalty=1.9)
    answer = sampler.sample(logits, [make_row(sampler, params, [*order[:2], 5])])
    entry = answer.logprobs[0]
    assert answer.tokens == [order[6]]
    assert entry.token_ids == (order[6], *order[:4])
    assert entry.rank == 7
    assert entry.logprobs == pytest.approx([want[t] for t in entry.token_ids], abs=2e-6)


@pytest.mark.parametrize("distinct", [200, 5000])
def test_token_counts_take_each_token_once(distinct: int) -> None:
    """Few tokens that come again and again, and many that are nearly all new, so that the tables grow at any point."""
    dice = random.Random(2)
    tokens = np.array([dice.randrange(distinct) for _ in range(700)], dtype=np.int32)
    counts = TokenCounts(num_prompt_tokens=300)
    for final in (100, 300, 300, 301, 450, 700):
        counts.advance(tokens, final)
        produced = Counter(tokens[300:final].tolist())
        assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == {
            t: produced[t] for t in set(tokens[:final].tolist())
        }
    known = int(tokens[699])
    ids, drafted = counts.with_drafts([known, known, 9999])
    together = dict(zip(ids.tolist(), drafted.tolist(), strict=True))
    assert together[known] == Counter(tokens[300:].tolist())[known] + 2
    assert together[9999] == 1
    assert 9999 not in counts.ids


def test_drafts_count_for_penalties_without_becoming_final() -> None:
    sampler = Sampler(VOCAB)
    params = SamplingParams(temperature=0.0, presence_penalty=2.0)
    logits = torch.zeros(1, VOCAB)
    logits[0, 10], logits[0, 20] = 1.5, 1.0
    seat = sampler.admit(1, params, 3)
    drafted = SampleRow(seat, np.array([1, 2, 3, 10], dtype=np.int32), 3)
    assert sampler.sample(logits.clone(), [drafted]).tokens == [20]
    rejected = SampleRow(seat, np.array([1, 2, 3], dtype=np.int32), 3)
    assert sampler.sample(logits.clone(), [rejected]).tokens == [10]


def test_top_p_widens_its_search_until_the_mass_is_reached() -> None:
    """A flat row needs nearly the whole vocabulary, its neighbour a single token."""
    vocab = 5000
    sampler = Sampler(vocab)
    logits = torch.zeros(2, vocab)
    logits[0] = torch.linspace(0, 1e-2, vocab)
    logits[1, 7] = 40.0
    step_rows = [make_row(sampler, SamplingParams(top_p=0.99, seed=s), [1, 2, 3]) for s in (1, 2)]
    answer = sampler.sample(logits.clone(), step_rows)
    assert answer.tokens[1] == 7
    assert sampler.sample(logits[:1].clone(), step_rows[:1]).tokens == answer.tokens[:1]
