"""One JSON value in a stream: found, checked and mended piece by piece, never read twice.

Knows the JSON grammar (RFC 8259) and nothing of calls. What models get wrong without leaving a doubt is mended: raw
control characters in strings are escaped, and Python's True, False and None become their JSON names.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 256
"""Of arrays and objects inside each other: readers of the answer parse recursively."""
MAX_SCALAR_CHARACTERS = 256
"""Of a number or a name: it is withheld until it is whole."""

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR_RUN = re.compile(r"[-+.0-9A-Za-z_]*")
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_NAMES = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_CONTROLS = {chr(code): f"\\u{code:04x}" for code in range(0x20)} | {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_HEX = frozenset("0123456789abcdefABCDEF")
_SURROGATE = re.compile("[\ud800-\udfff]")

# What may come next.
_VALUE, _VALUE_OR_END, _KEY, _KEY_OR_END, _COLON, _COMMA_OR_END, _STRING, _ESCAPE, _CODE = range(9)


class JsonScanner:
    """Feed it the text from the value's first character on; it stops behind the last one.

    The text that came out before ``error`` was set is the beginning of valid JSON. Work is linear in the text,
    however it is cut, and what comes out does not depend on the cuts.
    """

    __slots__ = ("_digits", "_in_key", "_nesting", "_next", "complete", "error")

    def __init__(self) -> None:
        self.complete = False
        self.error = ""
        self._next = _VALUE
        self._nesting: list[str] = []
        self._in_key = False
        self._digits = 0  # of a \u escape, still to come

    def scan(self, text: str, start: int, out: list[str], *, is_last: bool = False) -> int:
        """Read on at ``text[start]``, append JSON to ``out`` and return where reading stopped.

        A scalar that touches the end of ``text`` is left unread until more text comes or ``is_last`` is set.
        """
        position, end = start, len(text)
        while position < end and not (self.complete or self.error):
            before = position
            if self._next in (_STRING, _ESCAPE, _CODE):
                position = self._scan_string(text, position, out)
                continue
            position = _end_of(_SPACE, text, position)
            if position > before:
                out.append(text[before:position])
            if position < end:
                found = self._scan_token(text, position, out, is_last)
                if found == position:
                    return position
                position = found
        return position

    def _scan_string(self, text: str, position: int, out: list[str]) -> int:
        character = text[position]
        if self._next == _ESCAPE:
            if character not in '"\\/bfnrtu':
                return self._fail(f"\\{character} is no escape", position)
            self._next, self._digits = (_CODE, 4) if character == "u" else (_STRING, 0)
            out.append(character)
            return position + 1
        if self._next == _CODE:
            if character not in _HEX:
                return self._fail("an escape needs four hexadecimal digits", position)
            self._digits -= 1
            self._next = _CODE if self._digits else _STRING
            out.append(character)
            return position + 1
        run = _end_of(_STRING_RUN, text, position)
        if run > position:
            out.append(text[position:run])
            return run
        if character == '"':
            out.append(character)
            self._end_string()
        elif character == "\\":
            out.append(character)
            self._next = _ESCAPE
        else:
            out.append(_CONTROLS[character])
        return position + 1

    def _scan_token(self, text: str, position: int, out: list[str], is_last: bool) -> int:
        """One token that begins at ``position``. Returns ``position`` when it may not be whole."""
        character, expected = text[position], self._next
        if expected in (_VALUE, _VALUE_OR_END):
            if character in '"{[':
                return self._open(character, position, out)
            if not (character == "]" and expected == _VALUE_OR_END):
                return self._scan_scalar(text, position, out, is_last)
        if expected in (_KEY, _KEY_OR_END) and character == '"':
            return self._open(character, position, out)
        if expected == _COLON and character == ":":
            self._next = _VALUE
        elif expected == _COMMA_OR_END and character == ",":
            self._next = _KEY if self._nesting[-1] == "{" else _VALUE
        elif self._closes(character):
            self._nesting.pop()
            self._end_value()
        else:
            return self._fail(f"{character!r} is not possible here", position)
        out.append(character)
        return position + 1

    def _closes(self, character: str) -> bool:
        if self._next not in (_VALUE_OR_END, _KEY_OR_END, _COMMA_OR_END) or not self._nesting:
            return False
        return character == ("}" if self._nesting[-1] == "{" else "]")

    def _open(self, character: str, position: int, out: list[str]) -> int:
        if character == '"':
            self._in_key = self._next in (_KEY, _KEY_OR_END)
            self._next = _STRING
        else:
            if len(self._nesting) == MAX_DEPTH:
                return self._fail("it is nested too deeply", position)
            self._nesting.append(character)
            self._next = _KEY_OR_END if character == "{" else _VALUE_OR_END
        out.append(character)
        return position + 1

    def _scan_scalar(self, text: str, position: int, out: list[str], is_last: bool) -> int:
        end = _end_of(_SCALAR_RUN, text, position, position + MAX_SCALAR_CHARACTERS + 1)
        if end == position:
            return self._fail(f"{text[position]!r} begins no value", position)
        if end - position > MAX_SCALAR_CHARACTERS:
            return self._fail("a number is too long", position)
        if end == len(text) and not is_last:
            return position
        word = text[position:end]
        value = word if NUMBER.fullmatch(word) else _NAMES.get(word)
        if value is None:
            return self._fail(f"{word[:32]!r} is no value", position)
        out.append(value)
        self._end_value()
        return end

    def _end_string(self) -> None:
        if self._in_key:
            self._next = _COLON
        else:
            self._end_value()

    def _end_value(self) -> None:
        self._next = _COMMA_OR_END
        self.complete = not self._nesting

    def _fail(self, what: str, position: int) -> int:
        """The text from ``position`` on is not read. A caller must look at ``error``."""
        self.error = f"not JSON: {what}"
        return position


def strict_json(text: str) -> Any:
    """What ``text`` says as JSON, without the constants that Python adds. Raises ValueError, and RecursionError."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def escape_halves(text: str) -> str:
    """JSON text in which half a character is an escape again: it has no UTF-8."""
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def _end_of(pattern: re.Pattern[str], text: str, position: int, limit: int | None = None) -> int:
    match = pattern.match(text, position) if limit is None else pattern.match(text, position, limit)
    assert match is not None  # every pattern matches nothing, too
    return match.end()
