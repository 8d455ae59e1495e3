"""Schemas of tools that refer to themselves, or to much: what is read of them is bounded, and so is what is made."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from penstock.errors import InvalidRequestError
from penstock.frontend.dialects.constrain import call_constraint
from penstock.frontend.dialects.contract import Reading, Tool
from penstock.frontend.dialects.table import DIALECTS
from penstock.frontend.dialects.values import child_schema, item_schema, kinds_of
from penstock.types.structured import MAX_CONSTRAINT_CHARACTERS

MANY = 100


class Looked(dict):
    """A schema that counts how often it is looked at."""

    times = 0

    def get(self, *args):
        Looked.times += 1
        return super().get(*args)


@pytest.fixture(autouse=True)
def _from_nothing():
    Looked.times = 0


def itself(name: str, num: int = MANY) -> dict:
    return {"type": "object", "properties": {"x": Looked({name: [{"$ref": "#/properties/x"}] * num})}}


@pytest.mark.parametrize("name", ["anyOf", "oneOf", "allOf"])
def test_a_parameter_that_refers_to_itself_many_times_is_looked_at_once(name):
    root = itself(name)
    assert kinds_of(root["properties"]["x"], root) == frozenset()
    assert child_schema(root["properties"]["x"], "y", root) == {}
    assert item_schema(root["properties"]["x"], root) == {}
    assert Looked.times < MANY


def test_a_wide_union_is_looked_at_in_part():
    union = {"anyOf": [Looked(type="string"), *(Looked(anyOf=[Looked()] * 50) for _ in range(5000))]}
    assert kinds_of(union) == {"string"}
    assert item_schema(union, {}) == {}
    assert Looked.times < 20_000


def test_what_refers_to_itself_has_the_kinds_of_the_rest():
    root = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "string"}]}, "b": {"$ref": "#/$defs/c"},
                      "c": {"oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}}  # fmt: skip
    assert kinds_of({"$ref": "#/$defs/a"}, root) == {"string", "null"}


class TooMuchError(Exception):
    """Refused, with the limit."""


def made(dialect, schema: dict):
    try:
        return call_constraint(
            dialect, [Tool(name="f", parameters=schema)], Reading(tools={}), required=True, single=False
        )
    except InvalidRequestError as error:
        if str(MAX_CONSTRAINT_CHARACTERS) not in str(error):
            raise
        raise TooMuchError from None


WITH_GRAMMAR = [dialect for dialect in DIALECTS if dialect.structure or dialect.constrain]


@pytest.mark.parametrize("dialect", WITH_GRAMMAR, ids=lambda dialect: dialect.name)
def test_grammars_of_hostile_schemas_are_small_or_refused(dialect):
    listed = {"type": "array", "items": {}, "$ref": "#/$defs/a"}
    again = {"type": "object", "properties": {f"p{at}": listed for at in range(20)}}
    nested: dict = {"enum": ["x" * 5000]}
    for _ in range(12):
        nested = {"type": "array", "items": nested}
    definitions = {f"d{at}": {"type": "integer", "title": "t" * 200} for at in range(100)}
    for schema in (
        itself("anyOf"),
        {"type": "object", "properties": {"x": listed}, "$defs": {"a": {"type": "array", "items": again}}},
        {"type": "object", "properties": {"x": nested}},
        {"type": "object", "properties": {f"p{at}": {"$ref": "#/$defs/d1"} for at in range(200)}, "$defs": definitions},
    ):
        with contextlib.suppress(TooMuchError):
            assert made(dialect, schema).num_characters < MAX_CONSTRAINT_CHARACTERS / 4
    assert Looked.times < 10_000


def test_tools_are_read_until_their_grammar_is_too_long():
    hermes = next(one for one in DIALECTS if one.name == "hermes")
    made = []

    def structure(tools):
        made.extend(tools)
        return hermes.structure(tools)

    tool = Tool(name="f", parameters={"title": "t" * (MAX_CONSTRAINT_CHARACTERS // 4)})
    counting = dataclasses.replace(hermes, structure=structure)
    with pytest.raises(InvalidRequestError) as refused:
        call_constraint(counting, [tool] * 1000, Reading(tools={}), required=True, single=False)
    assert refused.value.param == "tools"
    assert len(made) < 10
