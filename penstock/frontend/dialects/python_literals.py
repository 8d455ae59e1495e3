"""Literals of Python in a stream, as JSON. Knows no calls."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable

from penstock.frontend.dialects.cursor import Cursor, EndOfText, Malformed, Sink, Steps
from penstock.frontend.dialects.json_scan import NUMBER

MAX_DEPTH = 64
"""Of lists and dictionaries inside each other: each is a generator that every piece of text passes through."""
_WORD = re.compile(r"[-+.0-9A-Za-z_]")
_MAX_WORD = 256
_NUMBER = re.compile(r"[-+]?(?:0[xXoObB])?[0-9A-Fa-f_.]+(?:[eE][-+]?[0-9]+)?")
_NAMES = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {
    "\n": "", "\\": "\\\\", "'": "'", '"': '\\"', "a": "\\u0007", "b": "\\b", "f": "\\f", "n": "\\n", "r": "\\r",
    "t": "\\t", "v": "\\u000b",
}  # fmt: skip
_OCTAL = tuple("01234567")
_CODE_DIGITS = {"x": 2, "u": 4, "U": 8}
_ESCAPED = (*_ESCAPES, *_OCTAL, *_CODE_DIGITS)


def read_literal(text: Cursor, sink: Sink, depth: int = 0) -> Steps[None]:
    """Give one literal to ``sink`` as it comes, as JSON text. ``sink`` may commit.

    Strings, numbers, the constants under Python's and JSON's names, lists, and dictionaries with strings for keys.
    """
    first = yield from text.peek()
    if not first:
        raise EndOfText("expected a value")
    if first in "\"'":
        yield from _read_string(text, sink)
    elif first in "[{":
        if depth == MAX_DEPTH:
            raise Malformed("a value is nested too deeply")
        yield from _read_items(text, sink, depth)
    else:
        sink(_scalar((yield from text.read_while(_WORD, _MAX_WORD))))


def _read_items(text: Cursor, sink: Sink, depth: int) -> Steps[None]:
    """A list or a dictionary; a comma before its end is allowed."""
    opened = yield from text.expect("[", "{")
    close = "]" if opened == "[" else "}"
    sink(opened)
    lead = ""
    while True:
        yield from text.skip_space()
        if (yield from text.accept(close)) is not None:
            break
        sink(lead)
        if opened == "{":
            yield from _read_string(text, sink)
            yield from text.skip_space()
            yield from text.expect(":")
            yield from text.skip_space()
            sink(": ")
        yield from read_literal(text, sink, depth + 1)
        yield from text.skip_space()
        if (yield from text.expect(",", close)) == close:
            break
        lead = ", "
    sink(close)


def _read_string(text: Cursor, sink: Sink) -> Steps[None]:
    quote = yield from text.expect('"', "'")
    sink('"')
    while (yield from text.stream_until(quote, "\\", sink=_escaping(sink))) != quote:
        yield from _read_escape(text, sink)
    sink('"')


def _escaping(sink: Sink) -> Callable[[str], None]:
    return lambda piece: sink(json.dumps(piece, ensure_ascii=False)[1:-1])


def _read_escape(text: Cursor, sink: Sink) -> Steps[None]:
    """Behind a backslash. As in Python, one that escapes nothing stands for itself."""
    found = yield from text.accept(*_ESCAPED)
    if found is None:
        sink("\\\\")
    elif found in _OCTAL:
        digits = found
        while len(digits) < 3 and (digit := (yield from text.accept(*_OCTAL))) is not None:
            digits += digit
        sink(_character(int(digits, 8)))
    elif found in _CODE_DIGITS:
        digits = ""
        while len(digits) < _CODE_DIGITS[found]:
            digits += yield from text.expect(*string.hexdigits)
        # Two of these may be one character, in JSON as in what the model has learned from it.
        sink(f"\\u{digits}" if found == "u" else _character(int(digits, 16)))
    else:
        sink(_ESCAPES[found])


def _character(code: int) -> str:
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise Malformed("an escape is no character")
    return json.dumps(chr(code), ensure_ascii=False)[1:-1]


def _scalar(word: str) -> str:
    """JSON text of a number or a constant."""
    if word in _NAMES:
        return _NAMES[word]
    if NUMBER.fullmatch(word):
        return word
    if _NUMBER.fullmatch(word) is None:
        raise Malformed(f"{word[:32]!r} is no value")
    try:
        return str(int(word, 0))
    except ValueError:
        if word.lstrip("+-").isdecimal():  # 007 is no number of Python's, and not for float() to judge
            raise Malformed(f"{word[:32]!r} begins with zeros") from None
    try:
        value = float(word)
    except ValueError:
        raise Malformed(f"{word[:32]!r} is no number") from None
    if not math.isfinite(value):
        raise Malformed(f"{word[:32]!r} is not finite")
    return json.dumps(value)
