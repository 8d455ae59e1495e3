"""Preparation of requests: what is merged, checked and fanned out before the engine hears of it."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_fixtures import byte_level_tokenizer, sentencepiece_tokenizer

from penstock.errors import InvalidRequestError
from penstock.frontend.text.load import TextAssets
from penstock.frontend.text.requests import (
    MAX_BAD_WORD_CHARACTERS,
    MAX_STOP_CHARACTERS,
    bad_word_ids,
    merge_sampling,
    prepare_request,
)
from penstock.types.request import SamplingParams

BYTES = TextAssets(tokenizer=byte_level_tokenizer(), stop_token_ids=frozenset({2}))
PIECES = TextAssets(tokenizer=sentencepiece_tokenizer(), stop_token_ids=frozenset({2}))


def prepare(prompt="hello", sampling=None, *, assets=BYTES, max_model_len=100, **more):
    ids = count(10)
    return prepare_request(
        assets,
        prompt,
        sampling or SamplingParams(),
        new_request_id=lambda: next(ids),
        max_model_len=max_model_len,
        **more,
    )


def test_the_callers_fields_win_over_the_models_defaults():
    defaults = {"temperature": 0.6, "top_p": 0.9}
    merged = merge_sampling(defaults, {"temperature": 0.0, "top_p": None, "n": 2})
    assert (merged.temperature, merged.top_p, merged.n) == (0.0, 0.9, 2)


def test_stop_ids_are_the_union_unless_eos_is_ignored():
    assert prepare(sampling=SamplingParams(stop_token_ids=(7,))).sampling.stop_token_ids == (2, 7)
    ignoring = SamplingParams(stop_token_ids=(7,), ignore_eos=True)
    assert prepare(sampling=ignoring).sampling.stop_token_ids == (7,)


@given(st.integers(1, 60), st.one_of(st.none(), st.integers(0, 80)), st.integers(1, 80))
def test_length_is_checked_and_filled_in(num_prompt, max_tokens, max_model_len):
    prompt = [5] * num_prompt
    sampling = SamplingParams(max_tokens=max_tokens)
    room = max_model_len - num_prompt
    if room < (1 if max_tokens is None else max_tokens):
        with pytest.raises(InvalidRequestError) as caught:
            prepare(prompt, sampling, max_model_len=max_model_len)
        assert str(num_prompt) in str(caught.value)
        assert str(max_model_len) in str(caught.value)
        assert caught.value.code == "context_length_exceeded"
    else:
        prepared = prepare(prompt, sampling, max_model_len=max_model_len)
        assert prepared.sampling.max_tokens == (room if max_tokens is None else max_tokens)


def test_the_models_own_output_length_caps_only_requests_that_name_none():
    assets = TextAssets(tokenizer=BYTES.tokenizer, max_new_tokens=8)
    assert prepare([5], assets=assets).sampling.max_tokens == 8
    assert prepare([5], assets=assets, max_model_len=4).sampling.max_tokens == 3
    assert prepare([5], SamplingParams(max_tokens=50), assets=assets).sampling.max_tokens == 50


@pytest.mark.parametrize(
    ("prompt", "sampling", "param"),
    [
        ([], SamplingParams(), "prompt"),
        ("", SamplingParams(), "prompt"),
        ([5, 10_000], SamplingParams(), "prompt"),
        ([-1], SamplingParams(), "prompt"),
        ([5], SamplingParams(logit_bias={10_000: 1.0}), "logit_bias"),
        ([5], SamplingParams(allowed_token_ids=(10_000,)), "allowed_token_ids"),
        ([5], SamplingParams(stop_token_ids=(10_000,)), "stop_token_ids"),
        ([5], SamplingParams(bad_token_ids=((10_000,),)), "bad_token_ids"),
        ([5], SamplingParams(bad_words=(" ",)), "bad_words"),
        ([5], SamplingParams(stop=("x" * (MAX_STOP_CHARACTERS + 1),)), "stop"),
        ([5], SamplingParams(bad_words=("x" * MAX_BAD_WORD_CHARACTERS, "x")), "bad_words"),
    ],
)
def test_what_does_not_fit_the_model_names_its_field(prompt, sampling, param):
    with pytest.raises(InvalidRequestError) as caught:
        prepare(prompt, sampling)
    assert caught.value.param == param


def test_ids_up_to_the_models_vocabulary_are_allowed():
    assert prepare([10_000], vocab_size=10_001).prompt_token_ids == (10_000,)


def test_prompt_field_name_is_the_callers():
    with pytest.raises(InvalidRequestError, match="messages has 5 tokens") as caught:
        prepare([5] * 5, max_model_len=5, param="messages")
    assert caught.value.param == "messages"


def test_choices_get_ids_and_seeds_of_their_own():
    prepared = prepare(
        sampling=SamplingParams(n=3, seed=2**63 - 2, logprobs=1), priority=4, cache_salt="s", deadline=9.0
    )
    assert [child.request_id for child in prepared.children] == [10, 11, 12]
    assert [child.sampling.seed for child in prepared.children] == [2**63 - 2, 2**63 - 1, -(2**63)]
    for child in prepared.children:
        assert (child.sampling.n, child.sampling.logprobs) == (1, 1)
        assert child.prompt_token_ids == prepared.prompt_token_ids
        assert (child.priority, child.cache_salt, child.deadline) == (4, "s", 9.0)


def test_without_a_seed_children_have_none():
    assert {child.sampling.seed for child in prepare(sampling=SamplingParams(n=2)).children} == {None}


def test_beginning_of_sequence_is_there_exactly_once():
    plain = prepare("the capital", assets=PIECES).prompt_token_ids
    assert plain[0] == 1
    assert plain.count(1) == 1
    for special in (True, False):
        begun = prepare("<s>the capital", assets=PIECES, add_special_tokens=special).prompt_token_ids
        assert begun[0] == 1
        assert begun.count(1) == 1
    assert 1 not in prepare("the capital", assets=PIECES, add_special_tokens=False).prompt_token_ids


def test_two_written_beginnings_stay_two():
    """Only the tokenizer's own is left out; what the caller wrote twice is his wish."""
    assert prepare("<s><s>a", assets=PIECES).prompt_token_ids.count(1) == 2


@pytest.mark.parametrize("tokenizer", [BYTES.tokenizer, PIECES.tokenizer], ids=["bytes", "pieces"])
def test_bad_words_are_forbidden_at_a_start_and_after_a_space(tokenizer):
    sequences = bad_word_ids(tokenizer, ("capital", " capital"))
    texts = {"".join(tokenizer.token_text(token_id) for token_id in sequence) for sequence in sequences}
    assert " capital" in texts
    assert all(text.lstrip(" ") == "capital" for text in texts)
    assert len(set(sequences)) == len(sequences)


def test_bad_words_join_the_callers_sequences():
    prepared = prepare(sampling=SamplingParams(bad_words=("x",), bad_token_ids=((3, 4),)))
    assert (3, 4) in prepared.sampling.bad_token_ids
    assert len(prepared.sampling.bad_token_ids) == 3


def test_bad_words_are_tokenized_once_for_all_prompts_of_a_request():
    encoded = []

    class Counting(type(BYTES.tokenizer)):
        def __init__(self):
            self.__dict__ = BYTES.tokenizer.__dict__

        def encode(self, text, **options):
            encoded.append(text)
            return super().encode(text, **options)

    assets = TextAssets(tokenizer=Counting(), stop_token_ids=frozenset({2}))
    sampling = SamplingParams(bad_words=("one", "two"))
    prepared = [prepare([5], sampling, assets=assets) for _ in range(20)]
    assert len({one.sampling.bad_token_ids for one in prepared}) == 1
    assert sorted(encoded) == [" one", " two", "one", "two"]


def test_the_stream_of_a_choice_stops_where_its_request_does():
    stream = prepare(sampling=SamplingParams(n=2, stop=("x",))).make_stream(1)
    assert stream.finish_reason is None
    assert stream.num_output_tokens == 0
