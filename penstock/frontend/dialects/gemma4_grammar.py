"""A grammar of arguments in Gemma 4's notation: the other direction of ``gemma4``.

Objects have the declared properties, in the order of their names, as the template prints them. Of strings, lists and
objects nothing else is enforced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from penstock.frontend.dialects.contract import Tool
from penstock.frontend.dialects.text_values import Texts, check_parameters, refuse_others
from penstock.frontend.dialects.value_grammar import Rules
from penstock.frontend.dialects.values import Kinds, kinds_of, referred_schema
from penstock.types.structured import lark_literal

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
_OF_LISTS = frozenset({"type", "items"})
_OF_OBJECTS = frozenset({"type", "properties", "required", "additionalProperties"})


def arguments_grammar(tool: Tool, quote: str) -> str:
    """Lark rules, from ``start`` on, for what stands between the braces of a call. Raises UnenforcedError."""
    check_parameters(tool)
    values = _Values(tool, quote)
    start = values.members(tool.parameters, 0)
    values.add_referred()
    string = (f"string: {lark_literal(quote)} string_text", rf"string_text[lazy]: /(.|\n)*/ {lark_literal(quote)}")
    values.rules.add(*_SHARED, *string)
    return values.rules.text(start)


class _Values:
    def __init__(self, tool: Tool, quote: str) -> None:
        self.rules = Rules()
        self._tool = tool
        self._root = tool.parameters
        self._kinds = Kinds(self._root)
        self._texts = Texts(self._kinds)
        self._quote = quote
        self._num_objects = 0
        self._num_items = 0
        self._parameter = ""  # for whom an error is
        self._referred: dict[str, str] = {}  # the names of their rules
        self._waiting: list[tuple[str, Mapping[str, Any], str]] = []  # such a name, its schema, for whom an error is

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
        self.rules.add(f'{name}_first_{last}: ""', f'{name}_more_{last}: ""')
        for index, (key, one) in enumerate(items):
            after = index + 1
            one_of = f"{name}_property_{index}"
            if depth == 0:
                self._parameter = str(key)
            first, more = f"{one_of} {name}_more_{after}", f'"," {one_of} {name}_more_{after}'
            if key not in needed:
                first, more = f"{first} | {name}_first_{after}", f"{more} | {name}_more_{after}"
            self.rules.add(
                f"{one_of}: {lark_literal(f'{key}:')} {self.value(one, depth + 1)}",
                f"{name}_first_{index}: {first}",
                f"{name}_more_{index}: {more}",
            )
        return f"{name}_first_0"

    def value(self, schema: Any, depth: int) -> str:
        """An expression for one value."""
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return "any_value"
        kinds = self._kinds.of(schema)
        if "string" in kinds and kinds <= {"string", "null"}:
            texts = self._texts.of(schema)
            if texts.values is not None and not texts.unenforced:
                return _one_of([self._literal(one) for one in texts.values])
        if isinstance(schema.get("$ref"), str):
            self._hold(schema, frozenset({"$ref"}))
            return self._reference(schema["$ref"])
        options = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(options, list) and options:
            return self._options(schema, options)
        for name in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(name), list) and schema[name] and (name != "allOf" or len(schema[name]) == 1):
                self._hold(schema, frozenset({name}))
                return _one_of([self.value(option, depth + 1) for option in schema[name]])
        if kinds == {"array"} and "items" in schema:
            self._hold(schema, _OF_LISTS)
            item = f"item_{self._num_items}"  # a rule: what is written twice would double with every list in a list
            self._num_items += 1
            self.rules.add(f"{item}: {self.value(schema['items'], depth + 1)}")
            return f'"[" ({item} ("," {item})*)? "]"'
        if kinds == {"object"} and (schema.get("properties") or schema.get("additionalProperties") is False):
            self._hold(schema, _OF_OBJECTS)
            return f'"{{" {self.members(schema, depth)} "}}"'
        if kinds and kinds <= _SCALARS:
            return f"%json {json.dumps(schema, ensure_ascii=False)}"
        self._hold(schema, frozenset({"type"}))
        return _one_of([_KINDS[kind] for kind in sorted(kinds)]) if kinds else "any_value"

    def _reference(self, reference: str) -> str:
        """The rule of what is referred to: one for all who do, so that it may refer to itself."""
        found = referred_schema(reference, self._root)
        if not isinstance(found, Mapping):
            self._hold({"$ref": reference}, frozenset())
            return "any_value"
        if reference not in self._referred:
            name = self._referred[reference] = f"referred_{len(self._referred)}"
            self._waiting.append((name, found, self._parameter))
        return self._referred[reference]

    def add_referred(self) -> None:
        """The rules of all that is referred to, one after the other: a chain of references may be long."""
        while self._waiting:
            name, schema, self._parameter = self._waiting.pop()
            self.rules.add(f"{name}: {self.value(schema, 1)}")

    def _options(self, schema: Mapping[str, Any], options: list[Any]) -> str:
        """One of these values, without those that are of no kind that the schema has."""
        kinds = kinds_of({"type": schema["type"]}) if "type" in schema else frozenset()
        fitting = [one for one in options if not kinds or kinds & _kinds_of_value(one)]
        deep = any(isinstance(one, dict | list) for one in fitting)
        self._hold(schema, frozenset({"type"}) if deep or not fitting else frozenset({"type", "enum", "const"}))
        return _one_of([self._literal(option) for option in fitting or options])

    def _hold(self, schema: Mapping[str, Any], enforced: frozenset[str]) -> None:
        if self._tool.strict:
            refuse_others(self._tool, self._parameter, schema, enforced)

    def _literal(self, value: Any) -> str:
        if isinstance(value, str):
            return lark_literal(f"{self._quote}{value}{self._quote}")
        return (
            lark_literal(json.dumps(value, ensure_ascii=False)) if not isinstance(value, dict | list) else "any_value"
        )


def _one_of(expressions: list[str]) -> str:
    return expressions[0] if len(expressions) == 1 else f"({' | '.join(expressions)})"


def _kinds_of_value(value: Any) -> frozenset[str]:
    kinds = kinds_of({"const": value})
    return kinds | {"number"} if "integer" in kinds else kinds
