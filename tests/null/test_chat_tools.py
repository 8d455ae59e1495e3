"""What requests say about tools: read, or refused with the field's name."""

from __future__ import annotations

import pytest

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.effort import EFFORTS, effort_variables
from penstock.frontend.chat.tools import NO_TOOLS, read_tool_use
from penstock.frontend.dialects.value_grammar import parameters_grammar
from penstock.frontend.dialects.values import kinds_of, value_json


def tool(name="weather", **fields):
    return {"type": "function", "function": {"name": name, **fields}}


def test_choices():
    both = [tool(), tool("clock", strict=True)]
    auto = read_tool_use(both, None, None)
    assert [one.name for one in auto.tools] == ["weather", "clock"]
    assert (auto.required, auto.single, auto.is_constrained) == (False, False, True)
    assert not read_tool_use([tool()], "auto", True).is_constrained
    assert read_tool_use(both, "none", None) is NO_TOOLS
    assert read_tool_use(None, None, None) is NO_TOOLS
    assert read_tool_use([], "auto", None) is NO_TOOLS
    required = read_tool_use(both, "required", False)
    assert (required.required, required.single) == (True, True)
    named = read_tool_use(both, {"type": "function", "function": {"name": "clock"}}, None)
    assert [one.name for one in named.tools] == ["clock"]
    assert len(named.shown) == 2  # the prompt does not change with the choice
    assert (named.required, named.single) == (True, True)


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([{"type": "web_search"}], None, "tools[0].type"),
        (["weather"], None, "tools[0].type"),
        ([{"type": "function"}], None, "tools[0].function"),
        ([tool(), tool("a b")], None, "tools[1].function.name"),
        ([tool("")], None, "tools[0].function.name"),
        ([tool("x" * 257)], None, "tools[0].function.name"),
        ([tool(), tool()], None, "tools[1].function.name"),
        ([tool(parameters=[])], None, "tools[0].function.parameters"),
        ([tool(description=5)], None, "tools[0].function.description"),
        ([tool(strict="yes")], None, "tools[0].function.strict"),
        ([tool()], "maybe", "tool_choice"),
        ([], "required", "tool_choice"),
        ([tool()], {"type": "function"}, "tool_choice"),
        ([tool()], {"type": "function", "function": {"name": "other"}}, "tool_choice"),
    ],
)
def test_wrong_tools_are_named(tools, choice, param):
    with pytest.raises(InvalidRequestError) as caught:
        read_tool_use(tools, choice, None)
    assert caught.value.param == param


def test_effort_becomes_template_variables():
    assert effort_variables(None, {"a": 1}) == {"a": 1}
    off, on = effort_variables("none", {}), effort_variables("high", {})
    assert off == {"reasoning_effort": "none", "enable_thinking": False, "thinking": False, "thinking_mode": "disabled"}
    assert on == {"reasoning_effort": "high", "enable_thinking": True, "thinking": True, "thinking_mode": "enabled"}
    assert effort_variables("high", {"thinking": False}) == {"reasoning_effort": "high", "thinking": False}
    assert effort_variables("low", {"reasoning_effort": "x"})["reasoning_effort"] == "x"
    assert all(effort_variables(effort, {}) for effort in EFFORTS)
    with pytest.raises(InvalidRequestError, match="one of none, minimal"):
        effort_variables("huge", {})


def test_kinds_of_schemas():
    root = {"$defs": {"Name": {"type": "string"}, "Loop": {"$ref": "#/$defs/Loop"}}}
    assert kinds_of({"type": ["integer", "null"]}) == {"integer", "null"}
    assert kinds_of({"anyOf": [{"$ref": "#/$defs/Name"}, {"type": "null"}]}, root) == {"string", "null"}
    assert kinds_of({"$ref": "#/$defs/Loop"}, root) == frozenset()
    assert kinds_of({"enum": ["a", 1]}) == {"string", "integer"}
    assert kinds_of({"const": 1.5}) == {"number"}
    assert kinds_of({"properties": {}}) == {"object"}
    assert kinds_of({}) == kinds_of(None) == frozenset()


@pytest.mark.parametrize(
    ("text", "kinds", "expected"),
    [
        ("5", {"integer"}, "5"),
        (" 5\n", {"integer"}, "5"),
        ("5", {"number"}, "5"),
        ("5.0", {"integer"}, "5.0"),
        ("five", {"integer"}, '"five"'),
        ("True", {"boolean"}, "true"),
        ("None", {"object", "null"}, "null"),
        ("[1, 2]", {"array"}, "[1, 2]"),
        ("[1, 2]", {"object"}, '"[1, 2]"'),
        ("['a', \"it's\", None]", {"array"}, '["a", "it\'s", null]'),
        (" {'a': [True, 1.5,]}\n", {"object", "null"}, '{"a": [true, 1.5]}'),
        ("['a']", {"object"}, "\"['a']\""),
        ("['a'] and more", {"array"}, "\"['a'] and more\""),
        ("['a", {"array"}, '"[\'a"'),
        ("[a]", {"array"}, '"[a]"'),
        ("['a']", set(), "\"['a']\""),
        ("", {"array"}, '""'),
        ("NaN", {"number"}, '"NaN"'),
        ("[" * 100_000, {"array"}, '"' + "[" * 100_000 + '"'),
        ("5", set(), "5"),
        ('"5"', set(), '"\\"5\\""'),
        ("é\n", set(), '"é\\n"'),
    ],
)
def test_values_by_schema(text, kinds, expected):
    assert value_json(text, frozenset(kinds)) == expected


def test_grammar_of_parameters():
    schema = {
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}, "days": {"$ref": "#/$defs/Days"}},
        "required": ["days"],
        "$defs": {"Days": {"type": "integer"}},
    }
    grammar = parameters_grammar(schema, before="<{key}>\n", after="\n</>")
    assert grammar.splitlines() == [
        "start: p0? p1? p2",
        'p0: "<city>\\n" v0',
        "v0: v0_text",
        'v0_text[lazy]: /(.|\\n)*/ "\\n</>"',
        'p1: "<unit>\\n" v1',
        'v1: ( "c" | "f") "\\n</>"',
        'p2: "<days>\\n" v2',
        'v2: %json {"$ref": "#/$defs/Days", "$defs": {"Days": {"type": "integer"}}} "\\n</>"',
    ]
    assert parameters_grammar({}, before="", after="").strip() == 'start: ""'
