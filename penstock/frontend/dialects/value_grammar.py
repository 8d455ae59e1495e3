"""A grammar of arguments that a dialect writes as text between tags: the other direction of ``values``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.frontend.dialects.contract import Tool
from penstock.frontend.dialects.text_values import Texts, TextValues, UnenforcedError, check_parameters
from penstock.frontend.dialects.values import Kinds
from penstock.types.structured import MAX_CONSTRAINT_CHARACTERS, lark_literal

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
    tool: Tool,
    *,
    before: str,
    after: str,
    quoted: tuple[str, str] = ("", ""),
    plain: tuple[str, str] = ("", ""),
    bare: str = "",
) -> str:
    """Lark rules, from ``start`` on, for all parameters in the order of the schema; those not required may be missing.

    ``before`` and ``after`` surround each value, ``quoted`` a string besides, ``plain`` a value that is none; ``{key}``
    in ``before`` is the name of the parameter. Strings are any text without what ends them, or one of those that the
    schema lists; all else is JSON. Strings of the characters ``bare`` (a class of a regular expression, without what
    begins ``after``) stand without quotes. Raises UnenforcedError for a strict tool that asks more of strings.
    """
    check_parameters(tool)
    schema = tool.parameters
    marks = _Marks(quoted=quoted, plain=plain, bare=bare, after=after)
    properties = schema.get("properties")
    required = schema.get("required")
    needed = frozenset(required) if isinstance(required, list) else frozenset()
    kinds, rules = Kinds(schema), Rules()
    texts = Texts(kinds)
    names: list[str] = []
    for position, (key, one) in enumerate(properties.items() if isinstance(properties, Mapping) else ()):
        head = _text(before.replace("{key}", str(key)))
        found, listed = kinds.of(one), texts.of(one)
        if tool.strict and listed.unenforced and (not found or "string" in found):
            raise UnenforcedError(tool.name, str(key), listed.unenforced)
        rules.add(f"p{position}:{head} v{position}", marks.rules(f"v{position}", one, found, listed, schema))
        names.append(f"p{position}" if key in needed else f"p{position}?")
    return rules.text(" ".join(names) or _NOTHING)


def keywords_grammar(tool: Tool) -> str:
    """Lark rules, from ``start`` on, for parameters as Python's keyword arguments, in the order of the schema.

    Values are JSON, which is Python but for the names of constants; those that are constants alone have Python's.
    Raises UnenforcedError.
    """
    check_parameters(tool)
    schema = tool.parameters
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks:
    """The texts around a value."""

    quoted: tuple[str, str]
    plain: tuple[str, str]
    bare: str
    after: str

    def rules(self, name: str, schema: Any, kinds: frozenset[str], texts: TextValues, root: Mapping[str, Any]) -> str:
        """The rule of one value with what follows it. Where nothing is said of its kind any text will do, which reading
        takes for JSON where it is that."""
        if kinds and "string" not in kinds:
            return f"{name}:{self._json(schema, root)}"
        lead, end = _text(self.quoted[0]), _text(self.quoted[1] + self.after)
        if texts.values is not None:
            return f"{name}:{' |'.join(self._listed(texts.values, lead, end))}"
        ways = [f" /{self.bare}+/?{_text(self.after)}"] if self.bare else []
        if self.plain[0] and not kinds:
            ways.append(self._json(schema, root))
        elif self.plain[0] and "null" in kinds:
            ways.append(self._null())
        # Lazy: the text ends where its end first occurs, as the parser reads it.
        return f"{name}:{' |'.join([*ways, f'{lead} {name}_text'])}\n{name}_text[lazy]: {_ANY_TEXT}{end}"

    def _listed(self, values: tuple[str | None, ...], lead: str, end: str) -> list[str]:
        texts = [one for one in values if one is not None]
        bare = [one for one in texts if self._is_bare(one)]
        marked = [one for one in texts if not self._is_bare(one)]
        ways = [f" ({' |'.join(map(_text, bare))}){_text(self.after)}"] if bare else []
        ways += [f"{lead} ({' |'.join(map(_literal, marked))}){end}"] if marked else []
        return ways + ([self._null()] if None in values else [])

    def _is_bare(self, text: str) -> bool:
        return bool(self.bare and re.fullmatch(f"{self.bare}+", text))

    def _null(self) -> str:
        return f"{_text(self.plain[0])} {lark_literal('null')}{_text(self.plain[1] + self.after)}"

    def _json(self, schema: Any, root: Mapping[str, Any]) -> str:
        value = json.dumps(with_definitions(schema, root), ensure_ascii=False)
        return f"{_text(self.plain[0])} %json {value}{_text(self.plain[1] + self.after)}"


def _literal(text: str) -> str:
    return f" {lark_literal(text)}"


def _text(text: str) -> str:
    """A Lark literal with a space before it, nothing for no text."""
    return _literal(text) if text else ""


def with_definitions(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema by itself: what it refers to goes with it."""
    found = {name: root[name] for name in ("$defs", "definitions") if name in root}
    return {**schema, **found} if isinstance(schema, Mapping) and found else schema
