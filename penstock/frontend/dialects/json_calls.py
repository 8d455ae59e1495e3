"""Calls that are JSON objects with a name and arguments: what many dialects put between their own tags."""

from __future__ import annotations

import json
import re

from penstock.frontend.dialects.contract import Tool
from penstock.frontend.dialects.cursor import Cursor, Malformed, Steps
from penstock.frontend.dialects.json_scan import escape_halves, strict_json
from penstock.frontend.dialects.writer import Writer
from penstock.types.structured import StructuralTag, StructuredKind, schema_text

ARGUMENT_KEYS = ("arguments", "parameters")
NAME_CHARACTER = re.compile(r"[\w.:/-]")
"""Of a tool's name, as a request may have it."""


def read_json_call(text: Cursor, out: Writer, *, wrapper: str | None = None, is_bare: bool = False) -> Steps[None]:
    """One object ``{"name": ..., "arguments": {...}}`` as one call, from behind its opening brace.

    Arguments go out as they come once the name is known; arguments that come first wait for it. A string that holds
    the object is unwrapped; null and no arguments at all are the empty object. Other keys are passed over. With
    ``wrapper`` the call may be the value of that key, as requests have calls. With ``is_bare``, for a dialect without
    tags, an object is Malformed as soon as a key or a value before the name is not a call's.
    """
    name: str | None = None
    waiting: str | None = None  # whole arguments that are not written yet
    begun = False
    key = yield from _first_key(text)
    while key is not None:
        if key == "name" and name is None:
            name = yield from text.json_string()
            out.schema(name)
        elif key in ARGUMENT_KEYS and not begun and waiting is None:
            if name is not None and (yield from text.peek()) == "{":
                begun = True
                out.begin(name)
                yield from text.json_value(out.arguments)
            else:
                waiting = _object_text((yield from text.json_text()))
        elif key == wrapper and name is None:
            yield from text.expect("{")
            yield from read_json_call(text, out)
            while (yield from _next_key(text)) is not None:
                yield from text.json_value(_drop)
            return
        elif is_bare and name is None:
            yield from _expect_beside_name(text, key)
        else:
            yield from text.json_value(_drop)
        if name is not None and waiting is not None and not begun:
            begun = True
            out.begin(name)
            out.arguments(waiting)
        key = yield from _next_key(text)
    if name is None:
        raise Malformed("a call without a name")
    if not begun:
        out.begin(name)
        out.arguments("{}")
    out.end()


def _expect_beside_name(text: Cursor, key: str) -> Steps[None]:
    """The value of ``key``, of those that a call has beside its name. Any other object is an answer, which must not
    wait for its end."""
    if key == "type":
        yield from text.expect('"function"')
    elif key == "id" and (yield from text.peek()) not in ("{", "["):
        yield from text.json_value(_drop)
    else:
        raise Malformed("an object that is no call")


def _drop(_: str) -> None:
    """Of a value that nobody asked for."""


def read_json_objects(text: Cursor, out: Writer, end: str) -> Steps[None]:
    """Calls as objects one after the other, up to ``end``, which may be missing."""
    yield from text.skip_space()
    yield from text.expect("{")
    while True:
        yield from read_json_call(text, out)
        yield from text.skip_space()
        if (yield from text.accept("{", end)) != "{":
            return


def read_json_calls(text: Cursor, out: Writer, opened: str, *, wrapper: str | None = None) -> Steps[None]:
    """Calls from behind ``opened``, which was read: ``[`` of a list of objects, or ``{`` of the only one.
    The end of the list may be missing."""
    if opened == "{":
        yield from read_json_call(text, out, wrapper=wrapper)
        return
    yield from text.skip_space()
    if (yield from text.expect("{", "]")) == "]":
        return
    while True:
        yield from read_json_call(text, out, wrapper=wrapper)
        yield from text.skip_space()
        if (yield from text.accept(",", "]")) != ",":
            return
        yield from text.skip_space()
        yield from text.expect("{")


def _first_key(text: Cursor) -> Steps[str | None]:
    """The first key, read with its colon; None behind an empty object."""
    yield from text.skip_space()
    if (yield from text.accept("}")) is not None:
        return None
    return (yield from _key(text))


def _next_key(text: Cursor) -> Steps[str | None]:
    """The key behind a value; None behind the object's end."""
    yield from text.skip_space()
    if (yield from text.expect(",", "}")) == "}":
        return None
    yield from text.skip_space()
    return (yield from _key(text))


def _key(text: Cursor) -> Steps[str]:
    key = yield from text.json_string()
    yield from _colon(text)
    return key


def _colon(text: Cursor) -> Steps[None]:
    yield from text.skip_space()
    yield from text.expect(":")
    yield from text.skip_space()


def _object_text(value: str) -> str:
    """Arguments as an object's text. Raises Malformed for anything that is no object."""
    decoded = json.loads(value)
    if decoded is None or decoded == "":
        return "{}"
    if isinstance(decoded, str):
        value = escape_halves(decoded)
        try:
            decoded = strict_json(value)
        except (ValueError, RecursionError):
            decoded = None
    if not isinstance(decoded, dict):
        raise Malformed("arguments are no object")
    return value


def read_arguments(text: Cursor, out: Writer, name: str, call_id: str | None = None, *, end: str = "") -> Steps[None]:
    """The arguments of a call whose name came before them, and with them the whole call. What is written instead of
    an object is taken as by ``read_json_call``; ``end`` in their place, which is read, means that there are none."""
    out.schema(name)
    if end and (yield from text.accept(end)) is not None:
        out.begin(name, call_id)
        out.arguments("{}")
    elif (yield from text.peek()) == "{":
        out.begin(name, call_id)
        yield from text.json_value(out.arguments)
    else:
        arguments = _object_text((yield from text.json_text()))
        out.begin(name, call_id)
        out.arguments(arguments)
    out.end()


def arguments_tag(tool: Tool, begin: str, end: str) -> StructuralTag:
    """``begin``, the arguments of one call of ``tool``, ``end``."""
    return StructuralTag(begin=begin, kind=StructuredKind.JSON_SCHEMA, text=schema_text(tool.parameters), end=end)


def json_call_tag(tool: Tool, begin: str, end: str, *, arguments_key: str = "arguments") -> StructuralTag:
    """``begin``, the object of one call of ``tool``, ``end``."""
    head = f'{begin}{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{arguments_key}": '
    schema = schema_text(tool.parameters)
    return StructuralTag(begin=head, kind=StructuredKind.JSON_SCHEMA, text=schema, end="}" + end)
