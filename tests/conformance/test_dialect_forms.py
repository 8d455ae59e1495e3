"""Forms that models give their calls beside the one of the template, and answers that only look like calls."""

from __future__ import annotations

import pytest
from dialect_cases import TOOLS

from penstock.frontend.dialects import llama3_json, phi4, qwen3_coder
from penstock.frontend.dialects.contract import Dialect, Reading
from penstock.frontend.dialects.events import AnswerFold, ContentText
from penstock.frontend.dialects.machine import Machine

ARGUMENTS = '"arguments": {"city": "Rome"}'
LISTS = {"pick": {"type": "object", "properties": {"names": {"type": "array"}, "places": {"type": "object"}}}}


def calls_of(dialect: Dialect, text: str, size: int, tools=TOOLS) -> tuple[str, list[tuple[str, str, bool]]]:
    machine, fold = Machine(dialect, Reading(tools=tools)), AnswerFold()
    for at in range(0, len(text), size):
        fold.add(machine.push(text[at : at + size]))
    fold.add(machine.finish())
    return fold.content, [(call.name, call.arguments, call.complete) for call in fold.calls]


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "call",
    [
        f'{{"id": "c1", "type": "function", "function": {{"name": "weather", {ARGUMENTS}}}}}',
        f'{{"function": {{{ARGUMENTS}, "name": "weather"}}, "type": "function", "id": "c1"}}',
        f'{{"index": 0, "function": {{"name": "weather", {ARGUMENTS}}}}}',
        f'{{"type": "function", "name": "weather", {ARGUMENTS}}}',
        f'{{{ARGUMENTS}, "type": "function", "name": "weather"}}',
        f'{{"id": "c1", "name": "weather", "type": "function", {ARGUMENTS}, "index": 0}}',
        f'{{"": 0, "name": "weather", {ARGUMENTS}}}',
    ],
)
def test_phi_takes_the_keys_of_a_call_in_any_order(call, size):
    for text in (f"<|tool_call|>[{call}]<|/tool_call|>", f"<|tool_call|>{call}<|/tool_call|>", f"functools[{call}]"):
        assert calls_of(phi4.DIALECT, text, size) == ("", [("weather", '{"city": "Rome"}', True)])
    both = f"<|tool_call|>[{call}, {call}]<|/tool_call|>"
    assert calls_of(phi4.DIALECT, both, size) == ("", [("weather", '{"city": "Rome"}', True)] * 2)


@pytest.mark.parametrize(
    "answer",
    [
        '{"type": "report", "body": "Rain',
        '{"type": {"of": "report"}, "body": "Rain',
        '{"id": "r1", "type": "report", "body": "Rain',
        '{"id": 7, "title": "Rain',
        '{"id": {"of": "Rain',
        '{"title": "Rain',
        '{"name": "Rome", "body": "Rain',
    ],
)
def test_an_answer_in_json_goes_on_as_it_comes_where_calls_have_no_tags(answer):
    """The string is still open: nothing has ended that could tell."""
    machine = Machine(llama3_json.DIALECT, Reading(tools=TOOLS))
    events = [event for character in answer for event in machine.push(character)]
    assert "".join(event.text for event in events if isinstance(event, ContentText)) == answer


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("before", ['"type": "function", ', '"id": "c1", "type": "function", ', '"id": 1, ', ""])
def test_a_call_without_tags_may_say_that_it_is_one(before, size):
    text = f'{{{before}"name": "weather", {ARGUMENTS}}}'
    assert calls_of(llama3_json.DIALECT, text, size) == ("", [("weather", '{"city": "Rome"}', True)])


@pytest.mark.parametrize("size", [1, 1000])
def test_lists_and_dictionaries_in_python_notation_are_json(size):
    text = (
        "<tool_call>\n<function=pick>\n<parameter=names>\n['a', 'b']\n</parameter>\n"
        "<parameter=places>\n{'Rome': True}\n</parameter>\n</function>\n</tool_call>"
    )
    expected = [("pick", '{"names": ["a", "b"], "places": {"Rome": true}}', True)]
    assert calls_of(qwen3_coder.DIALECT, text, size, LISTS) == ("", expected)
