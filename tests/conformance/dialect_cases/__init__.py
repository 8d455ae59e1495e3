"""What every dialect makes of broken output: one module per dialect, with a position on every case.

A module has ``CASES`` (a Case for every name of ``CASE_NAMES``, or a sentence why there can be none) and ``long_call``,
the text of a call of ``note`` whose one string argument is the given text, in which nothing needs escaping. A dialect
without a row in ``dialect_round_trips`` says why in ``NO_ROUND_TRIP``.
"""

from __future__ import annotations

import importlib
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
    "text_after_call",
    "no_end_marker",  # the call is whole, the marker behind it is missing
    "empty_arguments",
    "control_characters",  # a raw newline and a tab in a string argument
    "unfinished_reasoning",  # the output ends inside reasoning
    "call_inside_reasoning",
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
