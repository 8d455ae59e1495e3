"""MiniMax M3: every tag stands behind a mark of its own, parameters are elements named after themselves, and what is
inside an object or a list is elements again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Malformed, Sink, Steps
from penstock.frontend.dialects.json_calls import NAME_CHARACTER
from penstock.frontend.dialects.minimax_m2 import read_section
from penstock.frontend.dialects.minimax_m3_grammar import arguments_grammar
from penstock.frontend.dialects.values import (
    ArgumentsWriter,
    child_schema,
    item_schema,
    kinds_of,
    parameter_schema,
    value_json,
)
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind

MARK = "]<]minimax[>["
BEGIN, END = f"{MARK}<tool_call>", f"{MARK}</tool_call>"
INVOKE, INVOKE_END = f'{MARK}<invoke name="', f"{MARK}</invoke>"
_MARK_IN_NAME = MARK[: MARK.index(">")]
ITEM = "item"
MAX_DEPTH = 64
"""Of elements inside each other: each is a generator that every piece of text passes through."""


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_parameters_as_elements_behind_marks_of_minimax=evidence.prints_call(
            r"\]<\]minimax\[>\[<KEY>VALUE\]<\]minimax\[>\[</KEY>"
        )
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    yield from read_section(text, out, trigger, (INVOKE, END), _invoke)


def _invoke(text: Cursor, out: Writer) -> Steps[None]:
    """One function, from its name on."""
    name = yield from text.read_while(NAME_CHARACTER)
    yield from text.expect('">')
    schema = out.schema(name)
    out.begin(name)
    arguments = ArgumentsWriter(out, schema)
    while True:
        yield from text.skip_space()
        if (yield from text.expect(INVOKE_END, f"{MARK}<")) == INVOKE_END:
            break
        key = yield from _name(text)
        arguments.begin_value(key)
        yield from _value(text, out.arguments, key, parameter_schema(schema, key), schema, 1)
    arguments.close()
    out.end()


def _name(text: Cursor) -> Steps[str]:
    """Of an element, and the end of its tag."""
    name, _ = yield from text.read_until(">")
    if not name or name.startswith("/") or _MARK_IN_NAME in name:
        raise Malformed("a tag ends what was not begun, or has no end")
    return name


def _value(
    text: Cursor, sink: Sink, name: str, schema: Mapping[str, Any], root: Mapping[str, Any], depth: int
) -> Steps[None]:
    """An element to its end tag, given to ``sink`` as JSON. Strings go out as they come, scalars when they are whole;
    an element with elements in it is a list where the schema says so, or where it says nothing and they are items."""
    kinds = kinds_of(schema, root)
    if "null" in kinds and (yield from text.accept(f"null{MARK}")) is not None:
        yield from text.expect("</")
        yield from _expect_name(text, name)
        sink("null")
        return
    if "string" in kinds and kinds <= {"string", "null"}:
        sink('"')
        yield from text.stream_until(MARK, sink=lambda piece: sink(json.dumps(piece, ensure_ascii=False)[1:-1]))
        yield from text.expect("</")
        yield from _expect_name(text, name)
        sink('"')
        return
    written, _ = yield from text.read_until(MARK, limit=None)
    if (yield from text.expect("</", "<")) == "</":
        yield from _expect_name(text, name)
        if not written.strip() and "string" not in kinds and kinds & {"array", "object"}:
            sink("[]" if "array" in kinds else "{}")
        else:
            sink(value_json(written, kinds))
        return
    if written.strip():
        raise Malformed("text beside elements")
    if depth == MAX_DEPTH:
        raise Malformed("arguments are nested too deeply")
    first = yield from _name(text)
    is_list = first == ITEM and ("array" in kinds or "object" not in kinds)
    yield from _elements(text, sink, first, name, schema, root, depth, is_list)


def _elements(
    text: Cursor,
    sink: Sink,
    first: str,
    outer: str,
    schema: Mapping[str, Any],
    root: Mapping[str, Any],
    depth: int,
    is_list: bool,
) -> Steps[None]:
    """The elements of a list or an object, from behind the first one's tag to the end tag of ``outer``."""
    child, names = first, set[str]()
    sink("[" if is_list else "{")
    while True:
        if is_list:
            if child != ITEM:
                raise Malformed("a list has items alone")
            yield from _value(text, sink, child, item_schema(schema, root), root, depth + 1)
        else:
            if child in names:
                raise Malformed(f"the element {child[:64]!r} comes twice")
            names.add(child)
            sink(f"{json.dumps(child, ensure_ascii=False)}: ")
            yield from _value(text, sink, child, child_schema(schema, child, root), root, depth + 1)
        yield from text.skip_space()
        yield from text.expect(MARK)
        if (yield from text.expect("</", "<")) == "</":
            yield from _expect_name(text, outer)
            break
        child = yield from _name(text)
        sink(", ")
    sink("]" if is_list else "}")


def _expect_name(text: Cursor, name: str) -> Steps[None]:
    found, _ = yield from text.read_until(">")
    if found != name:
        raise Malformed(f"expected the end of {name[:64]!r}")


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(
        StructuralTag(
            begin=f'{INVOKE}{tool.name}">',
            kind=StructuredKind.LARK,
            text=arguments_grammar(tool.parameters, MARK, ITEM),
            end=f"{INVOKE_END}\n",
        )
        for tool in tools
    )
    return TagGroup(tags=tags, triggers=(BEGIN,), opening=f"{BEGIN}\n", closing=END)


DIALECT = Dialect(
    name="minimax_m3",
    models="MiniMax M3",
    detect=detect,
    triggers=(BEGIN, INVOKE),
    parse=parse,
    resync=(INVOKE_END, END),
    markers=(MARK,),
    reasoning=Reasoning(begin="<mm:think>", end="</mm:think>", may_be_closed=True),
    gap="",
    structure=structure,
    samples=(
        Sample(
            title="reasoning and content, then two calls: a string, a list and an object",
            text=f"<mm:think>Weather.</mm:think>On it.{BEGIN}\n"
            f'{INVOKE}weather">{MARK}<city>Köln{MARK}</city>{MARK}<hours>{MARK}<item>1{MARK}</item>'
            f"{MARK}<item>2.5{MARK}</item>{MARK}</hours>{MARK}<detail>{MARK}<unit>C{MARK}</unit>{MARK}</detail>"
            f'{INVOKE_END}\n{INVOKE}clock">{INVOKE_END}\n{END}',
            reasoning="Weather.",
            content="On it.",
            calls=(("weather", '{"city": "Köln", "hours": [1, 2.5], "detail": {"unit": "C"}}'), ("clock", "{}")),
        ),
        Sample(title="no reasoning, as the model says it", text="</mm:think>Four.", content="Four."),
    ),
)
