"""The record of a constraint: what it refuses, and that equal constraints are equal."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock import SamplingParams, StructuralTag, StructuredSpec
from penstock.errors import InvalidRequestError
from penstock.types.request import GenerateRequest
from penstock.types.structured import MAX_CONSTRAINT_CHARACTERS, MAX_TAGS, StructuredKind

TAG = StructuralTag(begin="<call>", end="</call>")


def test_equal_constraints_are_equal_and_hash_alike():
    one = StructuredSpec.json_schema({"type": "object", "properties": {"b": {}, "a": {}}})
    same = StructuredSpec.json_schema('{"type":"object","properties":{"b":{},"a":{}}}')
    other = StructuredSpec.json_schema({"type": "object", "properties": {"a": {}, "b": {}}})
    assert one == same
    assert hash(one) == hash(same)
    assert one != other  # the order of properties is that of the answer


@pytest.mark.parametrize(
    ("grammar", "kind"),
    [
        ('start: "a"', StructuredKind.LARK),
        ('root ::= "a" | "b"', StructuredKind.GBNF),
        ('start: "x ::= y"', StructuredKind.LARK),
        ('# rules\nroot ::= ws\nws ::= " "?', StructuredKind.GBNF),
    ],
)
def test_grammars_are_told_apart_by_how_a_rule_is_written(grammar, kind):
    assert StructuredSpec.grammar(grammar).kind is kind


@pytest.mark.parametrize(
    "make",
    [
        lambda: StructuredSpec.regex(""),
        lambda: StructuredSpec.regex(5),
        lambda: StructuredSpec.lark(""),
        lambda: StructuredSpec.grammar(None),
        lambda: StructuredSpec.choice([]),
        lambda: StructuredSpec.choice("yes"),
        lambda: StructuredSpec.choice(["", "a"]),
        lambda: StructuredSpec.choice([1]),
        lambda: StructuredSpec.choice(map(str, range(20_000))),
        lambda: StructuredSpec.json_schema({"a": object()}),
        lambda: StructuredSpec.json_schema({"minimum": float("nan")}),
        lambda: StructuredSpec.regex("a" * (MAX_CONSTRAINT_CHARACTERS + 1)),
        lambda: StructuredSpec(kind=StructuredKind.JSON_OBJECT, text="x"),
        lambda: StructuredSpec(kind=StructuredKind.REGEX, text="x", choices=("a",)),
        lambda: StructuredSpec.structural_tags([]),
        lambda: StructuredSpec.structural_tags([StructuralTag(begin="")]),
        lambda: StructuredSpec.structural_tags([StructuralTag(begin="a", kind=StructuredKind.REGEX)]),
        lambda: StructuredSpec.structural_tags([StructuralTag(begin="a", kind=StructuredKind.CHOICE)]),
        lambda: StructuredSpec.structural_tags([TAG], triggers=("<other>",)),
        lambda: StructuredSpec.structural_tags([TAG, StructuralTag(begin="{")], triggers=("<call>",)),
        lambda: StructuredSpec.structural_tags([TAG], triggers=("",)),
        lambda: StructuredSpec.structural_tags([TAG] * (MAX_TAGS + 1)),
        lambda: StructuredSpec.structural_tags([TAG], triggers=("<call>",) * (MAX_TAGS + 1)),
    ],
)
def test_what_cannot_be_meant_is_refused(make):
    with pytest.raises(InvalidRequestError) as raised:
        make()
    assert raised.value.param == "structured"


SHORT = st.text("ab", min_size=1, max_size=4)


@given(begins=st.lists(SHORT, min_size=1, max_size=6), triggers=st.lists(SHORT, min_size=1, max_size=6))
@example(begins=["ac"], triggers=["a", "ab"])
@example(begins=["ab", "ac"], triggers=["a", "ab"])
def test_tags_and_triggers_begin_each_other(begins, triggers):
    fits = all(any(begin.startswith(one) for begin in begins) for one in triggers) and all(
        any(begin.startswith(one) for one in triggers) for begin in begins
    )
    try:
        StructuredSpec.structural_tags([StructuralTag(begin=begin) for begin in begins], triggers=tuple(triggers))
    except InvalidRequestError:
        assert not fits
    else:
        assert fits


def test_no_more_tags_are_made_than_may_be():
    taken = 0

    def tags():
        nonlocal taken
        while True:
            taken += 1
            yield TAG

    with pytest.raises(InvalidRequestError, match=f"at most {MAX_TAGS} tags"):
        StructuredSpec.structural_tags(tags())
    assert taken == MAX_TAGS + 1


def test_a_schema_nested_beyond_all_measure_is_refused():
    schema = leaf = {}
    for _ in range(100_000):
        leaf["items"] = {}
        leaf = leaf["items"]
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        StructuredSpec.json_schema(schema)


def test_sampling_takes_nothing_else():
    with pytest.raises(InvalidRequestError, match="structured must be a StructuredSpec"):
        SamplingParams(structured={"type": "object"})


def test_constraints_cross_between_processes():
    spec = StructuredSpec.structural_tags([TAG], triggers=("<call>",), required=True, after="</think>")
    request = GenerateRequest(request_id=1, prompt_token_ids=(1,), sampling=SamplingParams(structured=spec))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=GenerateRequest) == request
