"""DSML, DeepSeek's markup of calls: a block of ``invoke`` elements with ``parameter`` elements, which say whether they
are strings. The versions differ in the block's name."""

from __future__ import annotations

import json

from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import NAME_CHARACTER
from penstock.frontend.dialects.values import ArgumentsWriter
from penstock.frontend.dialects.writer import Writer

TOKEN = "｜DSML｜"
INVOKE, INVOKE_END = f'<{TOKEN}invoke name="', f"</{TOKEN}invoke>"
PARAMETER, PARAMETER_END = f'<{TOKEN}parameter name="', f"</{TOKEN}parameter>"
IS_STRING, IS_JSON = ' string="true">', ' string="false">'


def block_of(name: str) -> tuple[str, str]:
    """The texts around the elements."""
    return f"<{TOKEN}{name}>", f"</{TOKEN}{name}>"


def read_block(text: Cursor, out: Writer, trigger: str, end: str) -> Steps[None]:
    """Behind the beginning of a block, or behind ``INVOKE`` where the model has left the block out."""
    if trigger != INVOKE:
        yield from text.skip_space()
        if (yield from text.expect(INVOKE, end)) == end:
            return
    while True:
        yield from _read_invoke(text, out)
        yield from text.skip_space()
        if (yield from text.accept(INVOKE, end)) != INVOKE:
            return


def _read_invoke(text: Cursor, out: Writer) -> Steps[None]:
    name = yield from text.read_while(NAME_CHARACTER)
    yield from text.expect('">')
    schema = out.schema(name)
    out.begin(name)
    yield from text.skip_space()
    if (yield from text.peek()) == "{":  # all arguments at once, as models write them now and then
        yield from text.json_value(out.arguments)
        out.end()
        yield from text.skip_space()
        yield from text.accept(INVOKE_END)
        return
    arguments = ArgumentsWriter(out, schema)
    while (yield from text.expect(PARAMETER, INVOKE_END)) == PARAMETER:
        yield from _read_parameter(text, arguments)
        yield from text.skip_space()
    arguments.close()
    out.end()


def _read_parameter(text: Cursor, arguments: ArgumentsWriter) -> Steps[None]:
    """What the element says of its type wins over the schema: the caller's validation sees what the model meant."""
    key, _ = yield from text.read_until('"')
    said = yield from text.expect(IS_STRING, IS_JSON, ">")
    if said == IS_STRING:
        if arguments.may_wrap(key):
            whole, _ = yield from text.read_until(PARAMETER_END, limit=None)
            if not arguments.write_all(key, whole):
                arguments.write(key, json.dumps(whole, ensure_ascii=False))
            return
        arguments.begin_string(key)
        yield from text.stream_until(PARAMETER_END, sink=arguments.string_text)
        arguments.end_string()
    elif said == IS_JSON:
        yield from text.skip_space()
        value = yield from text.json_text()
        if not arguments.write_all(key, value):
            arguments.write(key, value)
        yield from text.skip_space()
        yield from text.expect(PARAMETER_END)
    else:
        yield from arguments.read_value(text, key, PARAMETER_END)
