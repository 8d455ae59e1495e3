"""Arguments that broke off: what is certain of them, and nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.frontend.anthropic.partial_json import partial_object


@pytest.mark.parametrize(
    ("text", "certain"),
    [
        ("", {}),
        ("{", {}),
        ('{"a"', {}),
        ('{"a": "b', {}),
        ('{"a": "b"', {"a": "b"}),
        ('{"a": "b\\"', {}),
        ('{"a": 1', {}),
        ('{"a": 1,', {"a": 1}),
        ('{"a": tru', {}),
        ('{"a": 1, "b": {"c": [1, {"d": "e"', {"a": 1, "b": {"c": [1, {"d": "e"}]}}),
        ('{"a": [', {"a": []}),
        ('{"a": "{[\\\\"', {"a": "{[\\"}),
        ('{"a": 1}', {"a": 1}),
        ("[1, 2", {}),
        ("}", {}),
        ("no", {}),
        ('{"a": ' + "[" * 100_000, None),
    ],
)
def test_examples(text, certain):
    found = partial_object(text)
    assert certain is None or found == certain


# Every prefix is read, so that the time grows with the square of a text's length: short ones have it all.
texts = st.text(max_size=6)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)


def is_part(part, whole):
    """``part`` has some of what ``whole`` has, and nothing changed."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and is_part(value, whole[name]) for name, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(map(is_part, part, whole))
    return part == whole and type(part) is type(whole)


@given(st.dictionaries(texts, values, max_size=4), st.data())
def test_every_prefix_says_some_of_the_whole(whole, data):
    text = json.dumps(whole, ensure_ascii=data.draw(st.booleans()))
    assert partial_object(text) == whole
    before = 0
    for end in range(len(text)):
        part = partial_object(text[:end])
        assert is_part(part, whole)
        assert len(json.dumps(part)) >= before  # nothing is taken back
        before = len(json.dumps(part))
