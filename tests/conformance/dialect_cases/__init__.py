"""What every dialect makes of broken output: one module per dialect, with a position on every case.

A module has ``CASES`` (a Case for every name of ``CASE_NAMES``, or a sentence why there can be none) and ``long_call``,
the text of a call of ``note`` whose one string argument is the given text, in which nothing needs escaping. A dialect
without a row in ``dialect_round_trips`` says why in ``NO_ROUND_TRIP``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass

CASE_NAMES = (
    "unfinished_call",  # the output ends inside a string argument
    "unfinished_name",  # the output ends before the name is certain
    "bad_payload",  # not what the dialect writes, inside the arguments
    "bad_payload_before_name",  # not what the dialect writes, before the name
    "unknown_tool",
    "wrong_types",  # values that the schema does not permit
    "marker_in_string",  # the dialect's own markers inside a string argument, as its template would write them
    "marker_cut_at_end",  # the output ends inside a marker, behind content
    "call_after_broken_call",
    "mark_named_in_content",  # every text that opens a call, each in a sentence about it; then a call
    "text_after_call",
    "no_end_marker",  # the call is whole, the marker behind it is missing
    "empty_arguments",
    "control_characters",  # a raw newline and a tab in a string argument
    "unfinished_reasoning",  # the output ends inside reasoning
    "call_inside_reasoning",
    "tag_inside_reasoning",  # the text that opens a call, and no call
    "empty_reasoning",
    "reasoning_ended_twice",
    "space_between_calls",
    "byte_order_mark",  # before a call
    "carriage_returns",  # in place of newlines, in a call
    "no_arguments",  # nothing stands where arguments would
    "arguments_as_string",  # JSON inside a JSON string
    "duplicate_keys",
    "odd_numbers",  # which JSON permits
    "leading_zero",  # of a number, which JSON does not permit
    "surrogate_pair",  # a character as two escapes
    "lone_surrogate",  # an escape that is no character
    "long_name",
)

TOOLS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "detail": {"type": "object", "properties": {"unit": {"type": "string"}}},
        },
        "required": ["city"],
    },
    "clock": {"type": "object", "properties": {}},
    "note": {"type": "object", "properties": {"text": {"type": "string"}}},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """``calls`` are (name, arguments, complete)."""

    text: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str, bool], ...] = ()
    in_reasoning: bool = False


def cases_of(dialect: str):
    """The module of a dialect. A dialect without one fails."""
    return importlib.import_module(f"dialect_cases.{dialect}")


Cells = dict[str, "Case | str"]
ROME = ("weather", '{"city": "Rome"}', True)
FOX = r"\ud83e\udd8a"
LONG_NAME = "x" * 2000


def reasoning_cells(begin: str, end: str, trigger: str, *, closes: str = "", answer: str = "") -> Cells:
    """Cells of reasoning between ``begin`` and ``end``. ``closes`` is what ends reasoning a second time when it is not
    ``end`` that comes back as content; ``answer`` stands before content."""
    thought = f"Is {trigger} right?"
    return {
        "tag_inside_reasoning": Case(text=f"{begin}{thought}{end}{answer}No.", reasoning=thought, content="No."),
        "empty_reasoning": Case(text=f"{begin}{end}{answer}Hi.", content="Hi."),
        # Only what opened reasoning is ended; a reader may have been told about tags.
        "reasoning_ended_twice": Case(
            text=f"{begin}a{end}{answer}b{end}c", reasoning="a", content=closes or f"b{end}c"
        ),
    }


def no_reasoning(reason: str) -> Cells:
    names = ("unfinished_reasoning", "call_inside_reasoning", *reasoning_cells("", "", ""))
    return dict.fromkeys(names, reason)


def around_cells(whole: str, *marks: str) -> Cells:
    """Cells of what stands around ``whole``, the call of weather in Rome. ``marks`` are the texts that open a call."""
    said = "".join(f"I use {mark} here. " for mark in marks)
    return {
        "mark_named_in_content": Case(text=said + whole, content=said, calls=(ROME,)),
        "space_between_calls": Case(text=f"{whole} \n\n {whole}\n", calls=(ROME, ROME)),
        "byte_order_mark": Case(text=f"\ufeff{whole}", content="\ufeff", calls=(ROME,)),
    }


def json_cells(call: Callable[[str, str], str], *marks: str) -> Cells:
    """Cells of dialects whose arguments are JSON: ``call`` has a name and the arguments' text, ``marks`` open it."""
    long_name = call(LONG_NAME, "{}")
    broken = call("weather", '{"days": 01}')
    string = json.dumps(json.dumps({"city": "Rome"}))
    lone = json.dumps('{"text": "\ud83e"}')
    fox = f'{{"text": "{FOX}"}}'
    return around_cells(call("weather", '{"city": "Rome"}'), *marks) | {
        "carriage_returns": Case(
            text=call("weather", '{\n"city": "Rome"}').replace("\n", "\r\n"),
            calls=(("weather", '{\r\n"city": "Rome"}', True),),
        ),
        "arguments_as_string": Case(text=call("weather", string), calls=(ROME,)),
        # JSON permits them, and readers differ: validation is the caller's.
        "duplicate_keys": Case(
            text=call("note", '{"text": "a", "text": "b"}'), calls=(("note", '{"text": "a", "text": "b"}', True),)
        ),
        "odd_numbers": Case(
            text=call("clock", "[-0, 1e400]".join(('{"x": ', "}"))), calls=(("clock", '{"x": [-0, 1e400]}', True),)
        ),
        "leading_zero": Case(
            text=broken, content=broken[broken.index("01}") :], calls=(("weather", '{"days": ', False),)
        ),
        "surrogate_pair": Case(text=call("note", fox), calls=(("note", fox, True),)),
        # A string that holds the arguments is decoded once, and half a character stays an escape.
        "lone_surrogate": Case(text=call("note", lone), calls=(("note", '{"text": "\\ud83e"}', True),)),
        "long_name": Case(text=long_name, content=long_name),
    }


def text_cells(call: Callable[..., str], value_end: str, *marks: str, **own: Case | str) -> Cells:
    """Cells of dialects with values between tags: ``call`` has a name and values by keyword, ``value_end`` is behind
    each value, ``marks`` open a call."""
    whole, long_name = call("weather", city="Rome"), call(LONG_NAME)
    twice = call("note", text="a", text2="b").replace("text2", "text")
    return (
        around_cells(whole, *marks)
        | {
            "carriage_returns": Case(text=whole.replace("\n", "\r\n"), calls=(ROME,)),
            "no_arguments": "A call without arguments is one with no value between tags: empty_arguments.",
            "arguments_as_string": "Arguments are no JSON.",
            "duplicate_keys": Case(
                text=twice, content=twice.split(value_end, 1)[1], calls=(("note", '{"text": "a"', False),)
            ),
            "odd_numbers": Case(text=call("clock", x="[-0, 1e400]"), calls=(("clock", '{"x": [-0, 1e400]}', True),)),
            # No JSON, so a string.
            "leading_zero": Case(text=call("weather", days="01"), calls=(("weather", '{"days": "01"}', True),)),
            # Nothing is escaped here, so a backslash is one.
            "surrogate_pair": Case(text=call("note", text=FOX), calls=(("note", json.dumps({"text": FOX}), True),)),
            "lone_surrogate": Case(
                text=call("note", text=FOX[:6]), calls=(("note", json.dumps({"text": FOX[:6]}), True),)
            ),
            "long_name": Case(text=long_name, content=long_name),
        }
        | own
    )


def object_call(begin: str, end: str, arguments_key: str = "arguments") -> Callable[[str, str], str]:
    """Writes calls that are JSON objects between ``begin`` and ``end``."""
    return lambda name, arguments: f'{begin}{{"name": "{name}", "{arguments_key}": {arguments}}}{end}'
