"""The part of a JSON object that is certain when its text breaks off."""

from __future__ import annotations

import json
from typing import Any

_CLOSERS = {"{": "}", "[": "]"}
_MAX_DEPTH = 256
"""Brackets that are open at a time. What is deeper is left out, as if the text ended there."""


def partial_object(text: str) -> dict[str, Any]:
    """What ``text``, the beginning of a JSON object, says for sure: members and elements that are complete.

    A key without its value, and a number or a string that might go on, are left out. Text that is no object at all
    says nothing.
    """
    try:
        parsed = json.loads(_closed(text))
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _closed(text: str) -> str:
    """The longest prefix that ends behind a complete value, with its open brackets closed."""
    brackets: list[str] = []
    cut = 0
    closers = ""
    is_key = False
    position = 0
    while position < len(text):
        char = text[position]
        if char == '"':
            end = _string_end(text, position)
            if end is None:
                break
            position = end
            if not is_key and brackets:
                cut, closers = position, _closing(brackets)
            continue
        position += 1
        if char in _CLOSERS:
            if len(brackets) == _MAX_DEPTH:
                break
            brackets.append(char)
        elif char in "}]":
            if not brackets:
                break
            brackets.pop()
        elif char == ":":
            is_key = False
            continue
        elif char != ",":
            continue
        is_key = bool(brackets) and brackets[-1] == "{" and char in "{,"
        cut, closers = (position - 1 if char == "," else position), _closing(brackets)
    return text[:cut] + closers


def _closing(brackets: list[str]) -> str:
    return "".join(_CLOSERS[bracket] for bracket in reversed(brackets))


def _string_end(text: str, start: int) -> int | None:
    """The position behind the closing quote of the string that begins at ``start``."""
    position = start + 1
    while position < len(text):
        if text[position] == "\\":
            position += 2
        elif text[position] == '"':
            return position + 1
        else:
            position += 1
    return None
