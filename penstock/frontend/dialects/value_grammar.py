"""A grammar of arguments that a dialect writes as text between tags: the other direction of ``values``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.frontend.dialects.values import Kinds
from penstock.types.structured import MAX_CONSTRAINT_CHARACTERS

_NOTHING = '""'
_ANY_TEXT = r"/(.|\n)*/"
_CONSTANTS = {"boolean": '"True" | "False"', "null": '"None"'}


class Rules:
    """Rules of one grammar. Raises InvalidRequestError as soon as they are longer than a constraint may be: definitions
    go with every value that may need them, and a schema can refer to itself many times."""

    __slots__ = ("_lines", "_num_left")

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._num_left = MAX_CONSTRAINT_CHARACTERS

    def add(self, *rules: str) -> None:
        self._num_left -= sum(map(len, rules))
        check_size(self._num_left)
        self._lines += rules

    def text(self, start: str) -> str:
        """The grammar, with the expression that it starts with."""
        return "\n".join([f"start: {start}", *self._lines]) + "\n"


def check_size(num_left: int) -> None:
    """Raises InvalidRequestError where ``num_left`` of the characters of a constraint is negative."""
    if num_left < 0:
        raise InvalidRequestError(
            "Declare fewer or simpler parameters, or use tool_choice auto and functions without strict: a constraint "
            f"has at most {MAX_CONSTRAINT_CHARACTERS} characters, and the one for these tools has more.",
            param="tools",
        )


def parameters_grammar(
    schema: Mapping[str, Any],
    *,
    before: str,
    after: str,
    quoted: tuple[str, str] = ("", ""),
    plain: tuple[str, str] = ("", ""),
    bare: str = "",
) -> str:
    """Lark rules, from ``start`` on, for all parameters in the order of the schema; those not required may be missing.

    ``before`` and ``after`` surround each value, ``quoted`` a string besides, ``plain`` a value that is none; ``{key}``
    in ``before`` is the name of the parameter. Strings are any text without what ends them, or one of the ``enum``; all
    else is JSON. Strings of the characters ``bare`` (a class of a regular expression, without what begins ``after``)
    stand without quotes.
    """
    properties = schema.get("properties")
    required = schema.get("required")
    needed = frozenset(required) if isinstance(required, list) else frozenset()
    kinds, rules = Kinds(schema), Rules()
    names: list[str] = []
    for position, (key, one) in enumerate(properties.items() if isinstance(properties, Mapping) else ()):
        head = _text(before.replace("{key}", str(key)))
        value = _value(f"v{position}", one, kinds, quoted, plain, bare, after)
        rules.add(f"p{position}:{head} v{position}", value)
        names.append(f"p{position}" if key in needed else f"p{position}?")
    return rules.text(" ".join(names) or _NOTHING)


def keywords_grammar(schema: Mapping[str, Any]) -> str:
    """Lark rules, from ``start`` on, for parameters as Python's keyword arguments, in the order of the schema.

    Values are JSON, which is Python but for the names of constants; those that are constants alone have Python's.
    """
    properties = schema.get("properties")
    items = list(properties.items()) if isinstance(properties, Mapping) else []
    required = schema.get("required")
    needed = frozenset(required) if isinstance(required, list) else frozenset()
    count = len(items)
    kinds, rules = Kinds(schema), Rules()
    # none_I: parameters from I on, with none before them; more_I: the same behind others.
    rules.add(f"none_{count}: {_NOTHING}", f"more_{count}: {_NOTHING}")
    for position, (key, one) in enumerate(items):
        after = position + 1
        skipped = ("", "") if key in needed else (f" | none_{after}", f" | more_{after}")
        rules.add(
            f"none_{position}: p{position} more_{after}{skipped[0]}",
            f'more_{position}: ", " p{position} more_{after}{skipped[1]}',
            f"p{position}:{_text(f'{key}=')} {_python_value(one, kinds)}",
        )
    return rules.text("none_0")


def _python_value(schema: Any, kinds: Kinds) -> str:
    found = kinds.of(schema)
    if found and found <= _CONSTANTS.keys() and not {"enum", "const"} & schema.keys():
        return f"({' | '.join(_CONSTANTS[kind] for kind in sorted(found))})"
    return f"%json {json.dumps(with_definitions(schema, kinds.root), ensure_ascii=False)}"


def _value(
    name: str,
    schema: Any,
    kinds: Kinds,
    quoted: tuple[str, str],
    plain: tuple[str, str],
    bare: str,
    after: str,
) -> str:
    """The rule of one value with what follows it."""
    if "string" not in kinds.of(schema):
        value = json.dumps(with_definitions(schema, kinds.root), ensure_ascii=False)
        return f"{name}:{_text(plain[0])} %json {value}{_text(plain[1] + after)}"
    lead, end = _text(quoted[0]), _text(quoted[1] + after)
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(options, list) and options:
        texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in options]
        if bare and all(re.fullmatch(f"{bare}+", one) for one in texts):
            lead, end = "", _text(after)
        return f"{name}:{lead} ({' |'.join(map(_text, texts))}){end}"
    without = f" /{bare}+/?{_text(after)} |" if bare else ""
    # Lazy: the text ends where its end first occurs, as the parser reads it.
    return f"{name}:{without}{lead} {name}_text\n{name}_text[lazy]: {_ANY_TEXT}{end}"


def _text(text: str) -> str:
    """A Lark literal with a space before it, nothing for no text."""
    return f" {json.dumps(text, ensure_ascii=False)}" if text else ""


def with_definitions(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema by itself: what it refers to goes with it."""
    found = {name: root[name] for name in ("$defs", "definitions") if name in root}
    return {**schema, **found} if isinstance(schema, Mapping) and found else schema
