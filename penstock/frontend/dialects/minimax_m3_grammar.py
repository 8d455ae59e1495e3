"""A grammar of arguments as MiniMax M3 writes them: the other direction of ``minimax_m3``.

Objects have the declared properties, in the order of the schema. Lengths and patterns of strings are not enforced. What
is asked of lists and objects beside what is in them is enforced for strict tools alone, whose values are JSON there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from penstock.frontend.dialects.contract import Tool
from penstock.frontend.dialects.text_values import Texts, UnenforcedError, check_parameters, other_keyword
from penstock.frontend.dialects.value_grammar import Rules, with_definitions
from penstock.frontend.dialects.values import Kinds, item_schema, value_json
from penstock.types.structured import lark_literal

_MAX_DEPTH = 16
"""Of schemas inside each other; a value deeper than that is written as JSON."""
_OF_OPTIONS = frozenset({"type", "enum", "const"})
_OF_LISTS = frozenset({"type", "items"})
_OF_OBJECTS = frozenset({"type", "properties", "required", "additionalProperties"})


def arguments_grammar(tool: Tool, mark: str, item: str) -> str:
    """Lark rules, from ``start`` on, for all parameters; those not required may be missing. Raises UnenforcedError."""
    check_parameters(tool)
    elements = _Elements(tool, mark, item)
    start = elements.members(tool.parameters, 0)
    elements.rules.add(rf"text[lazy]: /(.|\n)*/ {lark_literal(mark)}")
    return elements.rules.text(start)


class _Elements:
    def __init__(self, tool: Tool, mark: str, item: str) -> None:
        self.rules = Rules()
        self._num_elements = 0
        self._tool = tool
        self._root = tool.parameters
        self._kinds = Kinds(self._root)
        self._texts = Texts(self._kinds)
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
        value = self._value(name, schema if isinstance(schema, Mapping) else {}, depth + 1)
        self.rules.add(f"{rule}: {lark_literal(f'{self._mark}<{name}>')} ({value}) {lark_literal(f'</{name}>')}")
        return rule

    def _value(self, name: str, schema: Mapping[str, Any], depth: int) -> str:
        kinds = self._kinds.of(schema)
        mark = lark_literal(self._mark)
        texts = self._texts.of(schema)
        if self._tool.strict and texts.unenforced and (not kinds or "string" in kinds):
            raise UnenforcedError(self._tool.name, name, texts.unenforced)
        options = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if not isinstance(options, list) or self._asks_more(schema, _OF_OPTIONS):
            options = texts.values or ()
        if not any(isinstance(one, dict | list) for one in options):
            written = [(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False), one) for one in options]
            found = [text for text, one in written if _is_read_as(text, one, kinds)]
            if found:
                return " | ".join(f"{lark_literal(text)} {mark}" if text else mark for text in found)
        if not kinds or "string" in kinds:
            return "text"
        if kinds == {"array"} and depth < _MAX_DEPTH and "items" in schema and not self._asks_more(schema, _OF_LISTS):
            return f"{self._element(self._item, item_schema(schema, self._root), depth)}* {mark}"
        if (
            kinds == {"object"}
            and depth < _MAX_DEPTH
            and schema.get("properties")
            and not self._asks_more(schema, _OF_OBJECTS)
        ):
            return f"{self.members(schema, depth)} {mark}"
        return f"%json {json.dumps(with_definitions(schema, self._root), ensure_ascii=False)} {mark}"

    def _asks_more(self, schema: Mapping[str, Any], enforced: frozenset[str]) -> bool:
        return self._tool.strict and bool(other_keyword(schema, enforced))


def _is_read_as(text: str, value: Any, kinds: frozenset[str]) -> bool:
    """Whether the element's text comes out as this very value."""
    if text == "null" and "null" in kinds:
        return value is None
    read = text if "string" in kinds and kinds <= {"string", "null"} else json.loads(value_json(text, kinds))
    return type(read) is type(value) and bool(read == value)
