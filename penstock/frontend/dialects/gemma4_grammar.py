"""A grammar of arguments in Gemma 4's notation: the other direction of ``gemma4``.

Objects have the declared properties, in the order of their names, as the template prints them. Lengths and patterns of
strings and the number of items are not enforced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from penstock.frontend.dialects.values import Kinds

_MAX_DEPTH = 16
"""Of schemas inside each other; a value deeper than that may be anything."""
_NUMBER = r"/-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/"
_INTEGER = r"/-?(0|[1-9][0-9]*)/"
_SHARED = (
    "any_value: string | NUMBER | BOOLEAN | NULL | any_object | any_array",
    'any_object: "{" (any_member ("," any_member)*)? "}"',
    'any_member: ANY_KEY ":" any_value',
    'any_array: "[" (any_value ("," any_value)*)? "]"',
    r"ANY_KEY: /[A-Za-z_][A-Za-z0-9_.-]*/",
    f"NUMBER: {_NUMBER}",
    f"INTEGER: {_INTEGER}",
    'BOOLEAN: "true" | "false"',
    'NULL: "null"',
)
_KINDS = {
    "string": "string", "number": "NUMBER", "integer": "INTEGER", "boolean": "BOOLEAN", "null": "NULL",
    "object": "any_object", "array": "any_array",
}  # fmt: skip
_SCALARS = frozenset({"number", "integer", "boolean", "null"})  # written as in JSON


def arguments_grammar(schema: Mapping[str, Any], quote: str) -> str:
    """Lark rules, from ``start`` on, for what stands between the braces of a call."""
    rules = _Rules(schema, quote)
    start = rules.members(schema, 0)
    lines = [f"start: {start}", *rules.lines, *_SHARED]
    lines += [f"string: {_quoted(quote)} string_text", rf"string_text[lazy]: /(.|\n)*/ {_quoted(quote)}"]
    return "\n".join(lines) + "\n"


class _Rules:
    def __init__(self, root: Mapping[str, Any], quote: str) -> None:
        self.lines: list[str] = []
        self._kinds_of = Kinds(root).of
        self._quote = quote
        self._num_objects = 0
        self._num_items = 0

    def members(self, schema: Mapping[str, Any], depth: int) -> str:
        """The name of a rule for all properties with commas between them; those not required may be missing."""
        properties = schema.get("properties")
        items = sorted(properties.items()) if isinstance(properties, Mapping) else []
        required = schema.get("required")
        needed = frozenset(required) if isinstance(required, list) else frozenset()
        name = f"object_{self._num_objects}"
        self._num_objects += 1
        # _first_I: properties from I on with none before them; _more_I: the same behind others.
        last = len(items)
        self.lines += [f'{name}_first_{last}: ""', f'{name}_more_{last}: ""']
        for index, (key, one) in enumerate(items):
            after = index + 1
            one_of = f"{name}_property_{index}"
            first, more = f"{one_of} {name}_more_{after}", f'"," {one_of} {name}_more_{after}'
            if key not in needed:
                first, more = f"{first} | {name}_first_{after}", f"{more} | {name}_more_{after}"
            self.lines += [
                f"{one_of}: {_quoted(f'{key}:')} {self.value(one, depth + 1)}",
                f"{name}_first_{index}: {first}",
                f"{name}_more_{index}: {more}",
            ]
        return f"{name}_first_0"

    def value(self, schema: Any, depth: int) -> str:
        """An expression for one value."""
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return "any_value"
        if isinstance(schema.get("$ref"), str):
            return self._kinds(schema)
        options = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(options, list) and options:
            return _one_of([self._literal(option) for option in options])
        for name in ("anyOf", "oneOf"):
            if isinstance(schema.get(name), list) and schema[name]:
                return _one_of([self.value(option, depth + 1) for option in schema[name]])
        if schema.get("type") == "array" and "items" in schema:
            item = f"item_{self._num_items}"  # a rule: what is written twice would double with every list in a list
            self._num_items += 1
            self.lines.append(f"{item}: {self.value(schema['items'], depth + 1)}")
            return f'"[" ({item} ("," {item})*)? "]"'
        if schema.get("type") == "object" and schema.get("properties"):
            return f'"{{" {self.members(schema, depth)} "}}"'
        kinds = self._kinds_of(schema)
        return f"%json {json.dumps(schema, ensure_ascii=False)}" if kinds and kinds <= _SCALARS else self._kinds(schema)

    def _kinds(self, schema: Mapping[str, Any]) -> str:
        kinds = self._kinds_of(schema)
        return _one_of([_KINDS[kind] for kind in sorted(kinds)]) if kinds else "any_value"

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            return _quoted(f"{self._quote}{value}{self._quote}")
        return _quoted(json.dumps(value, ensure_ascii=False)) if not isinstance(value, dict | list) else "any_value"


def _one_of(expressions: list[str]) -> str:
    return expressions[0] if len(expressions) == 1 else f"({' | '.join(expressions)})"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
