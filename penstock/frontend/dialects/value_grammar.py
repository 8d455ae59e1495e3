"""A grammar of arguments that a dialect writes as text between tags: the other direction of ``values``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.frontend.dialects.contract import Tool
from penstock.frontend.dialects.text_values import TextValues, UnenforcedError, check_parameters
from penstock.frontend.dialects.values import kinds_of
from penstock.types.structured import lark_literal

_NOTHING = '""'
_ANY_TEXT = r"/(.|\n)*/"
_CONSTANTS = {"boolean": '"True" | "False"', "null": '"None"'}


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
    names: list[str] = []
    rules: list[str] = []
    for position, (key, one) in enumerate(properties.items() if isinstance(properties, Mapping) else ()):
        head = _text(before.replace("{key}", str(key)))
        rules.append(f"p{position}:{head} v{position}")
        kinds, texts = kinds_of(one, schema), TextValues(one, schema)
        if tool.strict and texts.unenforced and (not kinds or "string" in kinds):
            raise UnenforcedError(tool.name, str(key), texts.unenforced)
        rules.append(marks.rules(f"v{position}", one, kinds, texts, schema))
        names.append(f"p{position}" if key in needed else f"p{position}?")
    return "\n".join([f"start: {' '.join(names) or _NOTHING}", *rules]) + "\n"


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
    # none_I: parameters from I on, with none before them; more_I: the same behind others.
    rules = ["start: none_0", f"none_{count}: {_NOTHING}", f"more_{count}: {_NOTHING}"]
    for position, (key, one) in enumerate(items):
        after = position + 1
        skipped = ("", "") if key in needed else (f" | none_{after}", f" | more_{after}")
        rules.append(f"none_{position}: p{position} more_{after}{skipped[0]}")
        rules.append(f'more_{position}: ", " p{position} more_{after}{skipped[1]}')
        rules.append(f"p{position}:{_text(f'{key}=')} {_python_value(one, schema)}")
    return "\n".join(rules) + "\n"


def _python_value(schema: Any, root: Mapping[str, Any]) -> str:
    kinds = kinds_of(schema, root)
    if kinds and kinds <= _CONSTANTS.keys() and not {"enum", "const"} & schema.keys():
        return f"({' | '.join(_CONSTANTS[kind] for kind in sorted(kinds))})"
    return f"%json {json.dumps(with_definitions(schema, root), ensure_ascii=False)}"


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
        bare = [one for one in values if one is not None and self.bare and re.fullmatch(f"{self.bare}+", one)]
        marked = [one for one in values if one is not None and one not in bare]
        ways = [f" ({' |'.join(map(_text, bare))}){_text(self.after)}"] if bare else []
        ways += [f"{lead} ({' |'.join(map(_literal, marked))}){end}"] if marked else []
        return ways + ([self._null()] if None in values else [])

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
