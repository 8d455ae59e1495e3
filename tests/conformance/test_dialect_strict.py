"""Strict tools in every dialect: what a schema says of arguments is enforced, or refused by name."""

from __future__ import annotations

import json

import jsonschema
import pytest
from test_dialect_constraints import BY_NAME, CALLING, END_ID, TOOL_LIST, TOOLS, WRITTEN, ids_of, read, vocabulary_of
from test_dialect_constraints import write as write_one

from penstock.errors import InvalidRequestError
from penstock.frontend.dialects.constrain import call_constraint, call_or_form
from penstock.frontend.dialects.contract import Reading, Tool
from penstock.frontend.dialects.table import DIALECTS
from penstock.frontend.dialects.text_values import Texts
from penstock.frontend.dialects.values import MAX_SCHEMAS, Kinds
from penstock.structured.select import BACKENDS
from penstock.types.structured import StructuredSpec

# Their strings are text; those of deepseek_v4 and qwen3_coder as well, which have no test of any string.
AS_TEXT = [one for one in DIALECTS if one.name in {*WRITTEN, "deepseek_v4", "qwen3_coder"}]
TEXT_DIALECT = pytest.mark.parametrize("dialect", AS_TEXT, ids=lambda dialect: dialect.name)
DEFINITIONS = {"Color": {"type": "string", "enum": ["red", "gr ey"]}, "Loop": {"$ref": "#/$defs/Loop"}}
LISTED = {
    "reference": {"$ref": "#/$defs/Color"},
    "reference in allOf": {"allOf": [{"$ref": "#/$defs/Color"}], "description": "of pydantic"},
    "or null": {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]},
    "constants": {"oneOf": [{"const": "a"}, {"const": "b"}]},
    "mixed": {"enum": ["a", 1]},
    "number for a text": {"type": "string", "enum": ["a", 1]},
    "text for a number": {"enum": ["1", 1, "b"]},
    "null": {"enum": ["a", None]},
    "or number": {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "integer", "maximum": 3}]},
    "both": {"type": "string", "enum": ["a", "b"], "anyOf": [{"enum": ["b", "c"]}]},
}
UNENFORCED = {
    "pattern": {"type": "string", "pattern": "^x$"},
    "maxLength": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
    "minLength": {"type": ["string", "null"], "minLength": 1},
    "format": {"type": "string", "format": "date"},
    "not": {"type": "string", "not": {"const": "x"}},
}


def tool_of(schema: object, *, strict: bool = True, **more: object) -> Tool:
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": DEFINITIONS, **more}
    return Tool(name="note", parameters=parameters, strict=strict)


def constrained(dialect, tool: Tool) -> StructuredSpec:
    reading = Reading(tools={tool.name: tool.parameters}, reads_reasoning=False)
    return call_constraint(dialect, [tool], reading, required=True, single=True)


@TEXT_DIALECT
@pytest.mark.parametrize("schema", LISTED.values(), ids=LISTED)
def test_listed_values_are_the_only_ones(dialect, schema):
    vocabulary = vocabulary_of(dialect, special=False)
    tool = tool_of(schema)
    reading = Reading(tools={"note": tool.parameters}, reads_reasoning=False)
    for seed in range(4):
        text = write_one(constrained(dialect, tool), vocabulary, seed)
        (call,) = read(dialect, text, reading).calls
        assert call.complete, text
        jsonschema.validate(json.loads(call.arguments), tool.parameters)


@TEXT_DIALECT
@pytest.mark.parametrize("keyword", UNENFORCED)
def test_what_is_not_enforced_is_refused_by_name_where_it_is_asked_for(dialect, keyword):
    with pytest.raises(InvalidRequestError, match=f"Leave {keyword} out of the parameter 'x' .* 'note'") as caught:
        constrained(dialect, tool_of(UNENFORCED[keyword]))
    assert caught.value.param == "tools"
    assert dialect.name in str(caught.value)
    assert constrained(dialect, tool_of(UNENFORCED[keyword], strict=False)) is not None
    assert constrained(dialect, tool_of({"type": "string", "minLength": 0, "format": "password"})) is not None


@TEXT_DIALECT
def test_what_is_asked_of_all_parameters_is_refused_by_name(dialect):
    with pytest.raises(InvalidRequestError, match="Leave minProperties out of the parameters of"):
        constrained(dialect, tool_of({"type": "integer"}, minProperties=1))
    with pytest.raises(InvalidRequestError, match="Leave required out of the parameters of"):
        constrained(dialect, tool_of({"type": "integer"}, required=["x", "y"]))


@TEXT_DIALECT
def test_a_parameter_of_no_kind_is_text(dialect):
    """Reading takes quotes for a part of such a value, so text must do without them."""
    vocabulary = vocabulary_of(dialect, special=False)
    tool = tool_of({"description": "anything"})
    reading = Reading(tools={"note": tool.parameters}, reads_reasoning=False)
    text = write_one(constrained(dialect, tool_of({"const": "TEXT"})), vocabulary, 0)
    session = BACKENDS["llguidance"].prepare(vocabulary).compile(constrained(dialect, tool)).open()
    assert all(session.accept(token_id) for token_id in [*ids_of(text, vocabulary), END_ID]), text
    (call,) = read(dialect, text, reading).calls
    assert json.loads(call.arguments) == {"x": "TEXT"}


@pytest.mark.parametrize("schema", [{"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}])
def test_the_number_of_items_is_enforced_or_refused(schema):
    gemma, minimax = (next(one for one in DIALECTS if one.name == name) for name in ("gemma4", "minimax_m3"))
    with pytest.raises(InvalidRequestError, match="Leave minItems out of the parameter 'x'"):
        constrained(gemma, tool_of(schema))
    assert constrained(gemma, tool_of(schema, strict=False)) is not None
    tool = tool_of(schema)
    text = write_one(constrained(minimax, tool), vocabulary_of(minimax, special=False), 1)
    (call,) = read(minimax, text, Reading(tools={"note": tool.parameters}, reads_reasoning=False)).calls
    jsonschema.validate(json.loads(call.arguments), tool.parameters)


def test_gemma4_follows_references_to_themselves():
    dialect = next(one for one in DIALECTS if one.name == "gemma4")
    tree = {
        "type": "object",
        "properties": {"n": {"$ref": "#/$defs/Color"}, "more": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
        "required": ["n"],
        "additionalProperties": False,
    }
    tool = tool_of({"$ref": "#/$defs/Tree"}, **{"$defs": {**DEFINITIONS, "Tree": tree}})
    for seed in range(6):
        text = write_one(constrained(dialect, tool), vocabulary_of(dialect, special=False), seed)
        (call,) = read(dialect, text, Reading(tools={"note": tool.parameters}, reads_reasoning=False)).calls
        jsonschema.validate(json.loads(call.arguments), tool.parameters)


def test_references_are_followed_so_far():
    wide = {"$defs": {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 30} for i in range(9)}}
    texts = Texts(Kinds(wide))
    found = texts.of({"$ref": "#/$defs/a0"})
    assert found.values is None
    assert found.unenforced
    assert texts._num_left > MAX_SCHEMAS - 30 * 9  # each reference once
    assert Texts(Kinds({"$defs": DEFINITIONS})).of({"$ref": "#/$defs/Loop"}).unenforced == "$ref"


def test_so_many_schemas_are_followed_for_one_value():
    texts = Texts(Kinds({}))
    for name in ("anyOf", "allOf"):
        found = texts.of({name: [{"enum": ["a"]}] * MAX_SCHEMAS})
        assert found.values != ("a",) or found.unenforced == name
        assert texts._num_left == -1
        assert texts.of({name: [{"enum": ["a"]}] * (MAX_SCHEMAS - 1)}).values == ("a",)


def test_texts_behind_references_are_taken_again_so_often():
    root = {"$defs": {"a": {"enum": [f"{i:08}" for i in range(1024)]}}}
    texts = Texts(Kinds(root))
    found = [texts.of({"$ref": "#/$defs/a"}) for _ in range(30)]
    assert [len(one.values or ()) for one in found] == [1024] * 16 + [0] * 14
    assert found[-1].unenforced == "$ref"


def test_gemma4_follows_a_long_chain_of_references():
    dialect = next(one for one in DIALECTS if one.name == "gemma4")
    chain = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"type": "integer"}]} for i in range(3000)}
    tool = tool_of({"$ref": "#/$defs/a0"}, **{"$defs": chain}, strict=False)
    assert "referred_2999" in constrained(dialect, tool).tags[0].text


@BY_NAME
def test_an_answer_is_calls_or_has_the_form(dialect):
    vocabulary = vocabulary_of(dialect, special=True)
    reading = Reading(tools=TOOLS, reads_reasoning=False)
    spec = call_or_form(dialect, TOOL_LIST, reading, StructuredSpec.choice(["yes", "no"]), single=False)
    if dialect.constrain is not None:
        assert spec is None
        return
    grammar = BACKENDS["llguidance"].prepare(vocabulary).compile(spec)
    call = write_one(call_constraint(dialect, TOOL_LIST, reading, required=True, single=True), vocabulary, 1)

    def takes(text: str) -> bool:
        session = grammar.open()
        return all(session.accept(token_id) for token_id in [*ids_of(text, vocabulary), END_ID])

    assert takes(call)
    assert takes("yes")
    assert not takes("maybe")
    assert not takes("yes" + call)


def test_reasoning_comes_before_calls_and_before_the_form():
    dialect = next(one for one in CALLING if one.name == "hermes")
    vocabulary = vocabulary_of(dialect, special=True)
    tools = [Tool(name="clock", parameters=TOOLS["clock"])]
    form = StructuredSpec.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    for in_reasoning, start in ((False, "<think>Hm.</think>\n\n"), (True, "Hm.</think>\n\n"), (False, "")):
        reading = Reading(tools={"clock": TOOLS["clock"]}, in_reasoning=in_reasoning)
        spec = call_or_form(dialect, tools, reading, form, single=True)
        compiled = BACKENDS["llguidance"].prepare(vocabulary).compile(spec)
        for end in (call, '{"a": 5}'):
            session = compiled.open()
            assert all(session.accept(one) for one in [*ids_of(start + end, vocabulary), END_ID]), start + end
    assert call_or_form(dialect, tools, Reading(tools={}), spec, single=True) is None
