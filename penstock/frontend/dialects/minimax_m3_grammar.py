"""A grammar of arguments as MiniMax M3 writes them: the other direction of ``minimax_m3``.

Objects have the declared properties, in the order of the schema. Lengths and patterns of strings and the number of
items are not enforced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from penstock.frontend.dialects.value_grammar import Rules, with_definitions
from penstock.frontend.dialects.values import Kinds, item_schema

_MAX_DEPTH = 16
"""Of schemas inside each other; a value deeper than that is written as JSON."""


def arguments_grammar(schema: Mapping[str, Any], mark: str, item: str) -> str:
    """Lark rules, from ``start`` on, for all parameters; those not required may be missing."""
    elements = _Elements(schema, mark, item)
    start = elements.members(schema, 0)
    elements.rules.add(rf"text[lazy]: /(.|\n)*/ {_quoted(mark)}")
    return elements.rules.text(start)


class _Elements:
    def __init__(self, root: Mapping[str, Any], mark: str, item: str) -> None:
        self.rules = Rules()
        self._num_elements = 0
        self._root = root
        self._kinds = Kinds(root)
        self._mark = mark
        self._item = item

    def members(self, schema: Mapping[str, Any], depth: int) -> str:
        """An expression for all properties."""
        properties = schema.get("properties")
        required = schema.get("required")
        needed = frozenset(required) if isinstance(required, list) else frozenset()
        items = properties.items() if isinstance(properties, Mapping) else ()
        parts = [self._element(str(key), one, depth) + ("" if key in needed else "?") for key, one in items]
        return " ".join(parts) or '""'

    def _element(self, name: str, schema: Any, depth: int) -> str:
        """The name of a rule for one element: every kind of value with the mark of the end tag."""
        rule = f"element_{self._num_elements}"
        self._num_elements += 1
        value = self._value(schema if isinstance(schema, Mapping) else {}, depth + 1)
        self.rules.add(f"{rule}: {_quoted(f'{self._mark}<{name}>')} ({value}) {_quoted(f'</{name}>')}")
        return rule

    def _value(self, schema: Mapping[str, Any], depth: int) -> str:
        kinds = self._kinds.of(schema)
        mark = _quoted(self._mark)
        options = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(options, list) and options and not any(isinstance(one, dict | list) for one in options):
            texts = (one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in options)
            return " | ".join(f"{_quoted(text)} {mark}" if text else mark for text in texts)
        if "string" in kinds:
            return "text"
        if kinds == {"array"} and depth < _MAX_DEPTH and "items" in schema:
            return f"{self._element(self._item, item_schema(schema, self._root), depth)}* {mark}"
        if kinds == {"object"} and depth < _MAX_DEPTH and schema.get("properties"):
            return f"{self.members(schema, depth)} {mark}"
        return f"%json {json.dumps(with_definitions(schema, self._root), ensure_ascii=False)} {mark}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
