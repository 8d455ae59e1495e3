"""Calls that are JSON objects with a name and arguments: what many dialects put between their own tags."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from penstock.frontend.dialects.contract import Tool
from penstock.frontend.dialects.cursor import Cursor, Malformed, Steps
from penstock.frontend.dialects.writer import Writer
from penstock.types.strict_json import loads_strict
from penstock.types.structured import StructuralTag, StructuredKind, schema_text

ARGUMENT_KEYS = ("arguments", "parameters")
NAME_CHARACTER = re.compile(r"[\w.:/-]")
"""Of a tool's name, as a request may have it."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json_call(
    text: Cursor,
    out: Writer,
    *,
    name_key: str = "name",
    argument_keys: Sequence[str] = ARGUMENT_KEYS,
    first_keys: frozenset[str] | None = None,
) -> Steps[None]:
    """One object ``{"name": ..., "arguments": {...}}`` as one call, from behind its opening brace.

    Arguments go out as they come once the name is known; arguments that come first wait for it. A string that holds
    the object is unwrapped; null and no arguments at all are the empty object. Other keys are passed over. With
    ``first_keys`` an object that begins with another key is Malformed at once, for a dialect without tags.
    """
    name: str | None = None
    waiting: str | None = None  # whole arguments that are not written yet
    begun = False
    key = yield from _first_key(text)
    if first_keys is not None and key not in first_keys:
        raise Malformed("an object that does not begin as a call")
    while key is not None:
        if key == name_key and name is None:
            name = yield from text.json_string()
            out.schema(name)
        elif key in argument_keys and not begun and waiting is None:
            if name is not None and (yield from text.peek()) == "{":
                begun = True
                out.begin(name)
                yield from text.json_value(out.arguments)
            else:
                waiting = _object_text((yield from text.json_text()))
        else:
            yield from text.json_value(lambda _: None)
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


def read_json_calls(text: Cursor, out: Writer, opened: str, *, wrapper: str | None = None) -> Steps[None]:
    """Calls from behind ``opened``, which was read: ``[`` of a list of objects, or ``{`` of the only one.

    With ``wrapper`` a call may be the value of that key in an object of its own, as requests have calls.
    """
    if opened == "{":
        yield from _wrapped_call(text, out, wrapper)
        return
    yield from text.skip_space()
    if (yield from text.expect("{", "]")) == "]":
        return
    while True:
        yield from _wrapped_call(text, out, wrapper)
        yield from text.skip_space()
        if (yield from text.accept(",", "]")) != ",":  # the end of the list may be missing
            return
        yield from text.skip_space()
        yield from text.expect("{")


def _wrapped_call(text: Cursor, out: Writer, wrapper: str | None) -> Steps[None]:
    """One call, in the object of ``wrapper`` or not. What stands beside it in the wrapping object is passed over."""
    found: str | None = None
    if wrapper is not None:
        yield from text.skip_space()
        found = yield from text.accept(f'"{wrapper}"', '"type"')
    if found is None:
        yield from read_json_call(text, out)
        return
    yield from _colon(text)
    while found != f'"{wrapper}"':
        yield from text.json_value(lambda _: None)
        yield from text.skip_space()
        yield from text.expect(",")
        yield from text.skip_space()
        found = yield from text.expect(f'"{wrapper}"', '"type"', '"id"')
        yield from _colon(text)
    yield from text.expect("{")
    yield from read_json_call(text, out)
    while (yield from _next_key(text)) is not None:
        yield from text.json_value(lambda _: None)


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
        # Half a character has no UTF-8, so it stays the escape that it was.
        value = _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", decoded)
        try:
            decoded = loads_strict(value)
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
