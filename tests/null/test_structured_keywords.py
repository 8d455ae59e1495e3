"""Schemas whose keywords cannot be enforced are refused, and the keyword is named."""

from __future__ import annotations

import json

import pytest

from penstock.structured import keywords
from penstock.structured.backends.llguidance import ENFORCED
from penstock.structured.contract import ConstraintError
from penstock.structured.keywords import ANNOTATIONS, ASSERTIONS, MAX_DEPTH, checked_schema, each_schema


def check(schema):
    return checked_schema(json.dumps(schema), ENFORCED, "llguidance")


@pytest.mark.parametrize("keyword", sorted(ASSERTIONS - ENFORCED))
def test_a_keyword_that_is_not_enforced_is_named(keyword):
    with pytest.raises(ConstraintError, match=r"keyword " + keyword.replace("$", r"\$") + r" \(at #/properties/a\)"):
        check({"properties": {"a": {keyword: {"type": "null"}}}})


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"items": {"not": {"const": 1}}}, "#/items"),
        ({"anyOf": [True, {"not": {"const": 1}}]}, "#/anyOf/1"),
        ({"$defs": {"x/y": {"not": {"const": 1}}}}, "#/$defs/x~1y"),
        ({"patternProperties": {"^a": {"additionalProperties": {"not": {"const": 1}}}}}, "additionalProperties"),
    ],
)
def test_the_place_is_named(schema, place):
    with pytest.raises(ConstraintError) as raised:
        check(schema)
    assert place in str(raised.value)


def test_names_of_properties_and_values_are_no_keywords():
    schema = {
        "properties": {"not": {"type": "string"}, "requried": {"const": {"not": 1}}},
        "enum": [{"uniqueItems": True}],
        "default": {"if": 1},
    }
    assert check(schema) == schema


def test_what_asks_for_nothing_is_left_out():
    assert check({"type": "array", "uniqueItems": False, "items": {"nullable": False, "not": False}}) == {
        "type": "array",
        "items": {},
    }
    with pytest.raises(ConstraintError, match="uniqueItems"):
        check({"uniqueItems": True})
    with pytest.raises(ConstraintError, match="nullable"):
        check({"nullable": True})


def test_annotations_and_foreign_keywords_stay():
    schema = dict.fromkeys(sorted(ANNOTATIONS - {"$defs", "definitions"}), "x") | {
        "x-order": 1,
        "javaType": "Foo",
        "_format": "date",
    }
    assert check(schema) == schema


@pytest.mark.parametrize(
    ("slip", "meant"), [("requried", "required"), ("propertis", "properties"), ("maxlength", "maxLength")]
)
def test_slips_of_the_pen_are_refused(slip, meant):
    with pytest.raises(ConstraintError, match=f"Write {meant}"):
        check({"type": "object", slip: 3})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '"a"', "NaN", '{"minimum": NaN}', '{"items": 3}', '{"properties": []}']
)
def test_what_is_no_schema_is_refused(text):
    with pytest.raises(ConstraintError):
        checked_schema(text, ENFORCED, "llguidance")


def test_options_of_the_library_are_not_taken_from_strangers():
    with pytest.raises(ConstraintError, match="x-guidance"):
        check({"x-guidance": {"lenient": True}, "not": {}})


def test_depth_is_bounded():
    def nested(depth):
        return {"items": nested(depth - 1)} if depth else {}

    assert check(nested(MAX_DEPTH))
    with pytest.raises(ConstraintError, match="nested too deeply"):
        check(nested(MAX_DEPTH + 1))
    with pytest.raises(ConstraintError, match="nested too deeply"):
        checked_schema('{"items":' * 100_000 + "{}" + "}" * 100_000, ENFORCED, "llguidance")


def test_every_schema_inside_is_visited():
    schema = check({"allOf": [{"items": {}}], "$defs": {"a": True, "b": {"const": 1}}})
    assert {at for at, _ in each_schema(schema)} == {"#", "#/allOf/0", "#/allOf/0/items", "#/$defs/b"}


def test_a_wide_union_is_copied_once(monkeypatch):
    num_looked = 0

    def counting(text: str) -> int:
        nonlocal num_looked
        num_looked += 1
        return int(text)

    monkeypatch.setattr(keywords, "int", counting, raising=False)
    assert check({"anyOf": [{"title": "t", "default": 1}] * 500}) == {"anyOf": [{"title": "t", "default": 1}] * 500}
    assert num_looked <= 1000
