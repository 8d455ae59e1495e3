"""Gemma 4: a notation of its own for arguments, with keys without quotes and strings between ``<|"|>``, and thoughts in
a channel."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Malformed, Sink, Steps
from penstock.frontend.dialects.gemma4_grammar import arguments_grammar
from penstock.frontend.dialects.json_scan import MAX_DEPTH
from penstock.frontend.dialects.values import ArgumentsWriter
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind

BEGIN, END = "<|tool_call>", "<tool_call|>"
CALL = "call:"
QUOTE = '<|"|>'
THOUGHT, THOUGHT_END = "<|channel>thought", "<channel|>"
_NAME = re.compile(r"[^{<\s]")
_KEY = re.compile(r'[^:{}\[\],<"\n]')
_CLOSERS = {"{": "}", "[": "]"}


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_with_strings_in_quote_tokens=evidence.prints_call(
            r'<\|tool_call>call:TOOL\{KEY:<\|"\|>VALUE<\|"\|>\}<tool_call\|>'
        )
    )


def parse(text: Cursor, out: Writer, _: str) -> Steps[None]:
    """One call. A missing end tag behind its brace is forgiven, and a word before the colon that is missing."""
    yield from text.skip_space()
    yield from text.expect(CALL, CALL[-1:])
    name = yield from text.read_while(_NAME)
    schema = out.schema(name)
    yield from text.skip_space()
    yield from text.expect("{")
    out.begin(name)
    arguments = ArgumentsWriter(out, schema)
    yield from text.skip_space()
    if (yield from text.accept("}")) is None:
        while True:
            key = yield from _key(text)
            if (yield from text.accept(QUOTE)) is not None:
                arguments.begin_string(key)
                yield from text.stream_until(QUOTE, sink=arguments.string_text)
                arguments.end_string()
            else:
                arguments.write(key, "")
                yield from _value(text, out.arguments)
            yield from text.skip_space()
            if (yield from text.expect(",", "}")) == "}":
                break
    arguments.close()
    out.end()
    yield from text.skip_space()
    yield from text.accept(END)


def _key(text: Cursor) -> Steps[str]:
    """A key and its colon, and the space behind it. Keys stand alone; in quotes they are read, too."""
    yield from text.skip_space()
    if (yield from text.accept(QUOTE)) is not None:
        key, _ = yield from text.read_until(QUOTE)
    elif (yield from text.peek()) == '"':
        key = yield from text.json_string()
    else:
        key = (yield from text.read_while(_KEY)).strip()
        if not key:
            raise Malformed("a value without a key")
    yield from text.skip_space()
    yield from text.expect(":")
    yield from text.skip_space()
    return key


def _value(text: Cursor, sink: Sink) -> Steps[None]:
    """One value of any kind, given to ``sink`` as JSON as it comes. Scalars are JSON already."""
    nesting: list[str] = []
    while True:
        yield from text.skip_space()
        opened = yield from text.accept(QUOTE, "{", "[")
        if opened == QUOTE:
            sink('"')
            yield from text.stream_until(QUOTE, sink=lambda part: sink(json.dumps(part, ensure_ascii=False)[1:-1]))
            sink('"')
        elif opened is None:
            yield from text.json_value(sink)
        else:
            if len(nesting) == MAX_DEPTH:
                raise Malformed("arguments are nested too deeply")
            sink(opened)
            yield from text.skip_space()
            if (yield from text.accept(_CLOSERS[opened])) is None:
                nesting.append(opened)
                yield from _lead(text, sink, opened)
                continue
            sink(_CLOSERS[opened])
        while nesting:
            yield from text.skip_space()
            found = yield from text.expect(",", _CLOSERS[nesting[-1]])
            if found == ",":
                sink(", ")
                yield from _lead(text, sink, nesting[-1])
                break
            sink(found)
            nesting.pop()
        else:
            return


def _lead(text: Cursor, sink: Sink, opened: str) -> Steps[None]:
    """What stands before a value: its key in an object, nothing in an array."""
    if opened == "{":
        key = yield from _key(text)
        sink(f"{json.dumps(key, ensure_ascii=False)}: ")


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(
        StructuralTag(
            begin=f"{BEGIN}{CALL}{tool.name}{{",
            kind=StructuredKind.LARK,
            text=arguments_grammar(tool, QUOTE),
            end=f"}}{END}",
        )
        for tool in tools
    )
    return TagGroup(tags=tags, triggers=(BEGIN,))


DIALECT = Dialect(
    name="gemma4",
    models="Gemma 4",
    detect=detect,
    triggers=(BEGIN,),
    parse=parse,
    resync=(END,),
    markers=(QUOTE,),
    reasoning=Reasoning(begin=THOUGHT, end=THOUGHT_END, ends_at_call=True),
    gap="",
    structure=structure,
    samples=(
        Sample(
            title="a string, a number, a list and an object",
            text='<|tool_call>call:weather{city:<|"|>Köln<|"|>,days:3,detail:{unit:<|"|>C<|"|>},hours:[1,2.5]}<tool_call|>',
            calls=(("weather", '{"city": "Köln", "days": 3, "detail": {"unit": "C"}, "hours": [1, 2.5]}'),),
        ),
        Sample(title="without its first word", text="<|tool_call>:clock{}<tool_call|>", calls=(("clock", "{}"),)),
        Sample(
            title="thoughts, then two calls",
            text="<|channel>thought\nTime.\n<channel|><|tool_call>call:clock{}<tool_call|><|tool_call>call:clock{}<tool_call|>",
            reasoning="Time.",
            calls=(("clock", "{}"), ("clock", "{}")),
        ),
    ),
)
