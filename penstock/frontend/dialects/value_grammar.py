"""A grammar of arguments that a dialect writes as text between tags: the other direction of ``values``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from penstock.frontend.dialects.values import kinds_of


def parameters_grammar(
    schema: Mapping[str, Any], *, before: str, after: str, separator: str = "", quoted: tuple[str, str] = ("", "")
) -> str:
    """Lark rules, from ``start`` on, for all parameters in the order of the schema; those not required may be missing.

    ``before`` and ``after`` surround each value, ``quoted`` a string besides; ``{key}`` in ``before`` is the name of
    the parameter. Strings are any text without what ends them, or one of the ``enum``; all else is JSON.
    """
    properties = schema.get("properties")
    required = schema.get("required")
    needed = frozenset(required) if isinstance(required, list) else frozenset()
    names: list[str] = []
    rules: list[str] = []
    for position, (key, one) in enumerate(properties.items() if isinstance(properties, Mapping) else ()):
        head = _text(before.replace("{key}", str(key)))
        value = _value(one, schema, quoted, after)
        rules.append(f"p{position}: {head} v{position}{_text(after)}")
        rules.append(f"v{position}: {value}")
        names.append(f"p{position}" if key in needed else f"p{position}?")
    return "\n".join([f"start: {' '.join(names) or _empty()}", *rules]) + "\n"


def text_without(literal: str) -> str:
    """A regular expression for every text in which ``literal`` does not occur, without look-ahead.

    The literal's first character must not occur in it again: then a mismatch can only begin a new attempt with that
    character, and needs no memory. Raises ValueError for any other literal.
    """
    first, rest = literal[0], literal[1:]
    if first in rest:
        raise ValueError(f"{literal!r} repeats its first character")
    broken = []
    for length in range(1, len(literal)):
        broken.append(f"{re.escape(literal[:length])}[^{_in_class(first)}{_in_class(literal[length])}]")
    begun = re.escape(first)
    if len(literal) > 2:
        tail = ""
        for character in reversed(literal[1:-1]):
            tail = f"({re.escape(character)}{tail})?"
        begun += tail
    elif len(literal) == 1:
        return f"[^{_in_class(first)}]*"
    return f"([^{_in_class(first)}]|({begun})*({'|'.join(broken)}))*({begun})*"


def _value(schema: Any, root: Mapping[str, Any], quoted: tuple[str, str], after: str) -> str:
    kinds = kinds_of(schema, root)
    if "string" not in kinds:
        return f"%json {json.dumps(_with_definitions(schema, root), ensure_ascii=False)}"
    lead, end = (_text(quote) for quote in quoted)
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(options, list) and options:
        texts = [_text(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) for one in options]
        return f"{lead} ({'|'.join(texts)}){end}".strip()
    return f"{lead} /{text_without(_lazy_end(quoted[1] or after)).replace('/', chr(92) + '/')}/{end}".strip()


def _lazy_end(end: str) -> str:
    """The longest beginning of ``end`` that does not repeat its first character."""
    at = end.find(end[0], 1)
    return end if at < 0 else end[:at]


def _text(text: str) -> str:
    """A Lark literal with a space before it, nothing for no text."""
    return f" {json.dumps(text, ensure_ascii=False)}" if text else ""


def _empty() -> str:
    return '""'


def _in_class(character: str) -> str:
    return re.escape(character) if character not in "^-]\\" else "\\" + character


def _with_definitions(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema by itself: what it refers to goes with it."""
    found = {name: root[name] for name in ("$defs", "definitions") if name in root}
    return {**schema, **found} if isinstance(schema, Mapping) and found else schema
