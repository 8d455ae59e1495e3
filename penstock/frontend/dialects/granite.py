"""Granite: a list of JSON objects behind a marker. Granite 3.0 to 3.3; Granite 4 speaks hermes.

Granite 3.3 thinks in ``<think>`` tags and puts its answer into ``<response>`` tags, which are no content.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Reading, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, EndOfText, Steps
from penstock.frontend.dialects.json_calls import json_call_tag, read_json_calls
from penstock.frontend.dialects.tagged import read_guarded
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict

MARKER = "<|tool_call|>"
MARKERS = (MARKER, "<tool_call>")  # Granite 3.1 spells it out
RESPONSE, RESPONSE_END = "<response>", "</response>"
REASONING = Reasoning(begin="<think>", end="</think>")


def detect(evidence: Evidence) -> Verdict:
    """Templates of Granite 3 print no calls in a form that can be probed; they describe them."""
    return needs(
        the_template_has_roles_of_Granite=evidence.mentions("<|start_of_role|>"),
        the_template_or_the_tokenizer_has_a_marker_of_calls=evidence.mentions(MARKER) or evidence.has_token(MARKER),
        the_template_prints_calls_not_in_tags=not evidence.prints_call(r"<tool_call>\s*\{[^\n]*\}\s*</tool_call>"),
    )


def parse(text: Cursor, out: Writer, _: str) -> Steps[None]:
    """A list of calls, or one without a list."""
    yield from text.skip_space()
    opened = yield from text.expect("[", "{")
    yield from read_json_calls(text, out, opened)


def read(text: Cursor, out: Writer, reading: Reading) -> Steps[None]:
    """Reasoning, then an answer in its tags or without them; calls in either."""
    triggers = MARKERS if reading.tools else ()
    yield from text.stream_space(out.content)
    if reading.reads_reasoning:
        opened = yield from text.accept(REASONING.begin)
        if opened is not None or reading.in_reasoning:
            out.begin_reasoning()
            yield from text.stream_until(REASONING.end, sink=out.reasoning)
            out.end_reasoning()
            yield from text.stream_space(out.content)
    closing: tuple[str, ...] = ()
    if (yield from text.accept(RESPONSE)) is not None:
        out.content("")
        closing = (RESPONSE_END,)
    while texts := (*closing, *triggers):
        found = yield from text.stream_until(*texts, sink=out.content)
        if found == RESPONSE_END:
            out.content("")
            closing = ()
        else:
            yield from read_guarded(parse, (), text, out, found)
    yield from text.stream_rest(out.content)
    raise EndOfText


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(json_call_tag(tool, "", "") for tool in tools)
    return TagGroup(tags=tags, triggers=(MARKER,), opening=f"{MARKER}[", separator=", ", closing="]")


DIALECT = Dialect(
    name="granite",
    models="Granite 3.0, 3.1, 3.2, 3.3",
    detect=detect,
    triggers=MARKERS,
    parse=parse,
    markers=(RESPONSE, RESPONSE_END),
    reasoning=REASONING,
    read=read,
    structure=structure,
    samples=(
        Sample(
            title="two calls",
            text='<|tool_call|>[{"name": "weather", "arguments": {"city": "Köln"}}, '
            '{"name": "clock", "arguments": {}}]',
            calls=(("weather", '{"city": "Köln"}'), ("clock", "{}")),
        ),
        Sample(
            title="arguments before the name",
            text='<tool_call> [{"arguments": {"city": "Rome"}, "name": "weather"}]',
            calls=(("weather", '{"city": "Rome"}'),),
        ),
        Sample(
            title="reasoning and an answer in their tags",
            text="<think>Easy.</think>\n<response>Four.</response>",
            reasoning="Easy.",
            content="Four.",
        ),
    ),
)
