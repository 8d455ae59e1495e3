"""Kimi K2: a section of calls, each with an id that holds its name, and JSON. K2, K2 Thinking, K2.5 and later."""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import NAME_CHARACTER, read_arguments
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind, schema_text

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
ARGUMENTS = "<|tool_call_argument_begin|>"
_ID = re.compile(r"functions\.(.+):[0-9]+")
_SHORT_ID = re.compile(r"(?:functions\.)?(.+?)(?::[0-9]+)?")


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_an_id_and_JSON_between_tool_call_marks=evidence.prints_call(
            re.escape(CALL) + r"[^<]*" + re.escape(ARGUMENTS) + r'\s*\{"KEY": ?"VALUE"\}\s*' + re.escape(CALL_END)
        )
    )


def new_call_id(name: str, index: int) -> str:
    """The form that the template needs to print the call again."""
    return f"functions.{name}:{index}"


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    """A section, or calls without one. A section that is not closed at the end is forgiven."""
    if trigger == SECTION:
        yield from text.skip_space()
        if (yield from text.expect(CALL, SECTION_END)) == SECTION_END:
            return
    while True:
        yield from text.skip_space()
        yield from _read_call(text, out)
        yield from text.skip_space()
        yield from text.accept(CALL_END)
        yield from text.skip_space()
        if (yield from text.accept(CALL, SECTION_END)) != CALL:
            return


def _read_call(text: Cursor, out: Writer) -> Steps[None]:
    """An id of the full form becomes the call's; of another one the name is taken."""
    found = yield from text.read_while(NAME_CHARACTER)
    yield from text.skip_space()
    yield from text.expect(ARGUMENTS)
    yield from text.skip_space()
    full, short = _ID.fullmatch(found), _SHORT_ID.fullmatch(found)
    name = full[1] if full is not None else short[1] if short is not None else found
    yield from read_arguments(text, out, name, found if full is not None else None, end=CALL_END)


def structure(tools: Sequence[Tool]) -> TagGroup:
    """The number that ends an id counts the calls of a whole conversation, so the model writes it."""
    tags = tuple(
        StructuralTag(
            begin=f"{CALL}functions.{tool.name}:",
            kind=StructuredKind.LARK,
            text=f'start: INDEX "{ARGUMENTS}" %json {schema_text(tool.parameters)}\nINDEX: /[0-9]{{1,4}}/\n',
            end=CALL_END,
        )
        for tool in tools
    )
    return TagGroup(tags=tags, triggers=(SECTION,), opening=SECTION, closing=SECTION_END)


DIALECT = Dialect(
    name="kimi_k2",
    models="Kimi K2, K2 Thinking, K2.5, K2.6",
    detect=detect,
    triggers=(SECTION, CALL),
    parse=parse,
    resync=(CALL_END, SECTION_END),
    markers=(ARGUMENTS,),
    reasoning=Reasoning(begin="<think>", end="</think>", ends_at_call=True),
    gap="",
    new_call_id=new_call_id,
    structure=structure,
    samples=(
        Sample(
            title="reasoning, content and two calls",
            text="<think>Both.</think>Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
            '<|tool_call_argument_begin|>{"city": "Köln"}<|tool_call_end|><|tool_call_begin|>functions.clock:1'
            "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
            reasoning="Both.",
            content="Let me see.",
            calls=(("weather", '{"city": "Köln"}'), ("clock", "{}")),
        ),
        Sample(
            title="a call that ends reasoning, with a short id",
            text="I need the time.<|tool_calls_section_begin|><|tool_call_begin|>clock<|tool_call_argument_begin|>{}"
            "<|tool_call_end|><|tool_calls_section_end|>",
            in_reasoning=True,
            reasoning="I need the time.",
            calls=(("clock", "{}"),),
        ),
    ),
)
