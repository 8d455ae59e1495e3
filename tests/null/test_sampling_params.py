"""What SamplingParams takes, what it makes of it, and that everything else is an error that names its field."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import get_type_hints

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidRequestError
from penstock.types.request import SamplingParams

WRONG = [
    ("n", 1.5), ("n", True), ("n", "2"), ("n", None), ("n", 0), ("max_tokens", 2.5), ("max_tokens", 2.0),
    ("max_tokens", 10**400), ("min_tokens", "1"), ("temperature", "1"), ("temperature", True), ("temperature", None),
    ("temperature", 10**400), ("temperature", math.nan), ("temperature", math.inf), ("temperature", 1j),
    ("top_k", 2.5), ("top_k", 2**63), ("top_p", [0.5]), ("top_p", 0), ("min_p", "0"), ("typical_p", 0.0),
    ("repetition_penalty", "1"), ("presence_penalty", math.nan), ("frequency_penalty", {}), ("seed", 1.5),
    ("seed", False), ("seed", "0"), ("logprobs", True), ("logprobs", 1.0), ("prompt_logprobs", 1.5),
    ("ignore_eos", 1), ("skip_special_tokens", "no"), ("include_stop_str_in_output", None), ("stop", ["a", 1]),
    ("stop", b"is"), ("stop", 5), ("stop", [""]), ("stop", ""), ("stop", {"a": 1}), ("bad_words", [b"a"]),
    ("bad_words", 1), ("allowed_token_ids", [1.5]), ("allowed_token_ids", "12"), ("allowed_token_ids", 3),
    ("allowed_token_ids", [True]), ("stop_token_ids", ["a"]), ("stop_token_ids", b"ab"), ("stop_token_ids", {1: 2}),
    ("bad_token_ids", [[30.0]]), ("bad_token_ids", [30]), ("bad_token_ids", "ab"), ("logit_bias", {"x": 1}),
    ("logit_bias", {"-1": 1}), ("logit_bias", {1.0: 1}), ("logit_bias", {1: "1"}), ("logit_bias", {1: math.nan}),
    ("logit_bias", {1: 101}), ("logit_bias", [(1, 1)]), ("logit_bias", {True: 1}),
]  # fmt: skip

TAKEN = [
    ("n", np.int32(2), 2), ("max_tokens", np.int64(3), 3), ("temperature", 1, 1.0),
    ("temperature", np.float32(0.5), 0.5),
    ("top_p", Fraction(1, 2), 0.5), ("seed", -(2**63), -(2**63)), ("stop", "is", ("is",)),
    ("stop", ["a", "b"], ("a", "b")),
    ("stop", None, ()), ("bad_words", "Paris", ("Paris",)), ("allowed_token_ids", [1, 2], (1, 2)),
    ("allowed_token_ids", range(3), (0, 1, 2)), ("allowed_token_ids", np.array([4, 5]), (4, 5)),
    ("stop_token_ids", {7}, (7,)), ("bad_token_ids", [[30], (1, 2)], ((30,), (1, 2))),
    ("logit_bias", {"28": 100, 3: -1}, {28: 100.0, 3: -1.0}), ("logit_bias", None, {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_type_or_value_names_its_field(name, value):
    with pytest.raises(InvalidRequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize(("name", "value", "kept"), TAKEN)
def test_what_python_callers_write_is_kept_in_the_declared_type(name, value, kept):
    found = getattr(SamplingParams(**{name: value}), name)
    assert found == kept
    assert type(found) is type(kept)
    if isinstance(kept, tuple):
        assert [type(item) for item in found] == [type(item) for item in kept]
    if isinstance(kept, dict):
        assert {(type(token_id), type(bias)) for token_id, bias in found.items()} <= {(int, float)}


def test_the_callers_containers_are_not_shared():
    bias = {1: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = math.nan
    assert params.logit_bias == {1: 1.0}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=2),
    max_leaves=4,
)


@given(name=st.sampled_from([field.name for field in dataclasses.fields(SamplingParams)]), value=JUNK)
def test_anything_is_either_refused_in_a_sentence_or_kept_exactly_as_declared(name, value):
    try:
        params = SamplingParams(**{name: value})
    except InvalidRequestError as error:
        params, named = None, error.param
    if params is None:
        assert named in (name, "min_tokens")
        return
    declared = get_type_hints(SamplingParams)[name]
    assert msgspec.convert(getattr(params, name), declared, strict=True) == getattr(params, name)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
