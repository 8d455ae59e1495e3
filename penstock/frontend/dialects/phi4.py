"""Phi 4: a list of JSON objects between markers, or behind the word ``functools``, as prompts ask for it. Phi-4-mini
and Phi-4-multimodal."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import json_call_tag, read_json_calls
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict

BEGIN, END = "<|tool_call|>", "<|/tool_call|>"
FUNCTOOLS = "functools["


def detect(evidence: Evidence) -> Verdict:
    """Published templates print no calls: the tokenizer tells, or a template that asks for ``functools``."""
    has_tokens = evidence.has_token(BEGIN) and evidence.has_token(END)
    prints = evidence.prints_call(r'<\|tool_call\|>\[?\{"name": ?"TOOL", ?"arguments": ?\{"KEY": ?"VALUE"\}\}')
    return needs(
        the_template_or_the_tokenizer_has_markers_around_calls=has_tokens
        or (prints and evidence.mentions(END))
        or evidence.mentions(FUNCTOOLS)
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    """A list of calls, or one without a list. A missing end marker is forgiven, because JSON ends by itself."""
    opened = "["
    if trigger == BEGIN:
        yield from text.skip_space()
        yield from text.accept("functools")
        opened = yield from text.expect("[", "{")
    yield from read_json_calls(text, out, opened, wrapper="function")
    if trigger == BEGIN:
        yield from text.skip_space()
        yield from text.accept(END)


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(json_call_tag(tool, "", "") for tool in tools)
    return TagGroup(tags=tags, triggers=(BEGIN,), opening=f"{BEGIN}[", separator=", ", closing=f"]{END}")


DIALECT = Dialect(
    name="phi4",
    models="Phi-4-mini, Phi-4-multimodal",
    detect=detect,
    triggers=(BEGIN, FUNCTOOLS),
    parse=parse,
    resync=(END,),
    reasoning=Reasoning(begin="<think>", end="</think>"),
    gap="",
    structure=structure,
    samples=(
        Sample(
            title="two calls between the markers",
            text='<|tool_call|>[{"name": "weather", "arguments": {"city": "Köln"}}, '
            '{"name": "clock", "arguments": {}}]<|/tool_call|>',
            calls=(("weather", '{"city": "Köln"}'), ("clock", "{}")),
        ),
        Sample(
            title="one call behind functools",
            text='functools[{"name": "weather", "arguments": {"city": "Rome"}}]',
            calls=(("weather", '{"city": "Rome"}'),),
        ),
        Sample(
            title="a call as requests have them",
            text='<|tool_call|>[{"type": "function", "function": {"name": "clock", "arguments": {}}}]<|/tool_call|>',
            calls=(("clock", "{}"),),
        ),
    ),
)
