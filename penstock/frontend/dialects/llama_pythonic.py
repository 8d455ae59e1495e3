"""Llama pythonic: an answer that is a list of calls in Python's notation. Llama 3.2 and Llama 4."""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Malformed, Steps
from penstock.frontend.dialects.json_calls import NAME_CHARACTER
from penstock.frontend.dialects.python_literals import read_literal
from penstock.frontend.dialects.value_grammar import keywords_grammar
from penstock.frontend.dialects.values import ArgumentsWriter
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind

PYTHON_START, PYTHON_END = "<|python_start|>", "<|python_end|>"
_KEY_CHARACTER = re.compile(r"[\w.$-]")


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_in_Python_notation=evidence.prints_call(r"\[TOOL\(KEY ?= ?[\"']VALUE[\"']\)\]")
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    """A list whose first item begins as a call of a tool; any other list is content, and goes on as content."""
    if trigger == PYTHON_START:
        yield from text.skip_space()
        yield from text.expect("[")
    while True:
        yield from text.skip_space()
        yield from _read_call(text, out)
        yield from text.skip_space()
        if (yield from text.accept(",", "]")) != ",":  # the end of the list may be missing
            break
    yield from text.accept(PYTHON_END)


def _read_call(text: Cursor, out: Writer) -> Steps[None]:
    """``name(key=value, ...)``. The call begins when its first key is certain, for words in brackets look like one.
    Values without a key are no call: which parameters they stand for would be a guess."""
    name = yield from text.read_while(NAME_CHARACTER)
    yield from text.skip_space()
    yield from text.expect("(")
    arguments = ArgumentsWriter(out, out.schema(name))
    is_open = False
    while True:
        yield from text.skip_space()
        if (yield from text.accept(")")) is not None:
            break
        key = yield from text.read_while(_KEY_CHARACTER)
        yield from text.skip_space()
        yield from text.expect("=")
        yield from text.skip_space()
        if not key:
            raise Malformed("an argument without a name")
        if not is_open:
            is_open = True
            out.begin(name)
        arguments.begin_value(key)
        yield from read_literal(text, out.arguments)
        yield from text.skip_space()
        if (yield from text.expect(",", ")")) == ")":
            break
    if not is_open:
        out.begin(name)
    arguments.close()
    out.end()


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(
        StructuralTag(begin=f"{tool.name}(", kind=StructuredKind.LARK, text=keywords_grammar(tool), end=")")
        for tool in tools
    )
    triggers = tuple(f"[{tool.name}(" for tool in tools)
    return TagGroup(tags=tags, triggers=triggers, opening="[", separator=", ", closing="]")


DIALECT = Dialect(
    name="llama_pythonic",
    models="Llama 3.2, Llama 4",
    detect=detect,
    triggers=(PYTHON_START,),
    start_triggers=("[",),
    parse=parse,
    markers=(PYTHON_END,),
    gap="",
    structure=structure,
    samples=(
        Sample(
            title="two calls",
            text="[weather(city=\"Köln\", days=3, hours=[1, 2.5], detail={'unit': None}), clock()]",
            calls=(
                ("weather", '{"city": "Köln", "days": 3, "hours": [1, 2.5], "detail": {"unit": null}}'),
                ("clock", "{}"),
            ),
        ),
        Sample(
            title="content, then a call between marks",
            text="Let me see.<|python_start|>[weather(city='it\\'s')]<|python_end|>",
            content="Let me see.",
            calls=(("weather", '{"city": "it\'s"}'),),
        ),
        Sample(title="a list that is no call", text="[1] says so.", content="[1] says so."),
    ),
)
