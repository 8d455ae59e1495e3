"""Llama 3 JSON: an answer that is nothing but calls as JSON objects, without tags. Llama 3.1, 3.2 and 3.3."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import json_call_tag, read_json_call
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict

PYTHON_TAG = "<|python_tag|>"
SEPARATOR = "; "


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_a_bare_JSON_object_with_name_and_parameters=evidence.prints_call(
            r'(?:\n|>)\{"name": ?"TOOL", ?"parameters": ?\{"KEY": ?"VALUE"\}\}'
        )
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    """Objects with a semicolon between them. Only an object that begins as a call does is one: an answer that is JSON
    of another kind is content, and goes on as content at once. Only with arguments first it waits for what follows."""
    if trigger == PYTHON_TAG:
        yield from text.skip_space()
        yield from text.expect("{")
    while True:
        yield from read_json_call(text, out, is_bare=True)
        yield from text.skip_space()
        if (yield from text.accept(";")) is None:
            break
        yield from text.skip_space()
        if (yield from text.at_end()):
            break
        yield from text.expect("{")


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(json_call_tag(tool, "", "", arguments_key="parameters") for tool in tools)
    return TagGroup(tags=tags, triggers=('{"name": ',), separator=SEPARATOR)


DIALECT = Dialect(
    name="llama3_json",
    models="Llama 3.1, 3.2, 3.3",
    detect=detect,
    triggers=(PYTHON_TAG,),
    start_triggers=("{",),
    parse=parse,
    gap="",
    structure=structure,
    samples=(
        Sample(
            title="one call",
            text='{"name": "weather", "parameters": {"city": "Köln"}}',
            calls=(("weather", '{"city": "Köln"}'),),
        ),
        Sample(
            title="two calls behind the tag",
            text='<|python_tag|>{"name": "clock", "parameters": {}}; {"name": "weather", "parameters": {"city": "a"}}',
            calls=(("clock", "{}"), ("weather", '{"city": "a"}')),
        ),
        Sample(title="JSON that is no call", text='{"city": "Köln"}', content='{"city": "Köln"}'),
    ),
)
