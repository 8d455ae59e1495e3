"""What a schema says of a value that a dialect writes as text: which texts there are, and what of it no grammar of a
dialect enforces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from penstock.frontend.dialects.contract import Tool
from penstock.frontend.dialects.values import kinds_of, referred_schema
from penstock.structured.keywords import ASSERTIONS, asks_nothing

_FOLLOWED = frozenset({"$ref", "type", "enum", "const", "allOf", "anyOf", "oneOf"})
_OF_OTHERS = frozenset(
    [
        "properties",
        "patternProperties",
        "additionalProperties",
        "unevaluatedProperties",
        "propertyNames",
        "required",
        "minProperties",
        "maxProperties",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "items",
        "prefixItems",
        "additionalItems",
        "unevaluatedItems",
        "contains",
        "minContains",
        "maxContains",
        "minItems",
        "maxItems",
        "uniqueItems",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "divisibleBy",
        "nullable",
    ]
)
"""What says nothing of strings."""
_OF_PARAMETERS = frozenset({"type", "properties", "required", "additionalProperties"})
_MAX_DEPTH = 8
_MAX_SCHEMAS = 500
"""Followed for one value; references can make a few schemas into very many."""


class UnenforcedError(Exception):
    """A strict tool asks for what the grammar of its arguments does not enforce; ``parameter`` is empty where all of
    them are meant."""

    def __init__(self, tool: str, parameter: str, keyword: str) -> None:
        super().__init__(tool, parameter, keyword)
        self.tool = tool
        self.parameter = parameter
        self.keyword = keyword


class TextValues:
    """``values`` are all texts that the schema has, and None among them for null; None if any text will do.

    Looks through references and alternatives. ``unenforced`` is a keyword that is not in that, or empty.
    """

    __slots__ = ("_left", "_passed_over", "_root", "unenforced", "values")

    def __init__(self, schema: Any, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = _MAX_SCHEMAS
        self._passed_over = _FOLLOWED | _OF_OTHERS if kinds_of(schema, root) else _FOLLOWED
        self.unenforced = ""
        self.values = self._find(schema, "", 0)
        if self.values == ():  # nothing fits; reading takes numbers of an enum for texts
            self.unenforced = self.unenforced or "enum"
            self.values = None

    def _find(self, schema: Any, within: str, depth: int) -> tuple[str | None, ...] | None:
        self._left -= 1
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH or self._left < 0:
            self.unenforced = self.unenforced or ("" if schema is True else within)
            return None
        kinds = kinds_of({"type": schema["type"]}) if "type" in schema else frozenset()
        if kinds and "string" not in kinds:
            return (None,) if "null" in kinds else ()
        found: tuple[str | None, ...] | None = None
        for keyword, value in schema.items():
            if keyword in ASSERTIONS and keyword not in self._passed_over and not _is_idle(keyword, value):
                self.unenforced = self.unenforced or keyword
            for one in self._parts(keyword, value, depth):
                found = one if found is None else found if one is None else tuple(x for x in found if x in one)
        return tuple(x for x in found if x is not None) if found and kinds and "null" not in kinds else found

    def _parts(self, keyword: str, value: Any, depth: int) -> Iterable[tuple[str | None, ...] | None]:
        """What one keyword permits: all of these."""
        if keyword == "const" or (keyword == "enum" and isinstance(value, list)):
            options = [value] if keyword == "const" else value
            return [tuple(one for one in options if one is None or isinstance(one, str))]
        if keyword == "$ref":
            return [self._find(referred_schema(value, self._root), keyword, depth + 1)]
        if keyword not in ("allOf", "anyOf", "oneOf") or not isinstance(value, list) or not value:
            return []
        found = [self._find(one, keyword, depth + 1) for one in value]
        if keyword == "allOf":
            return found
        listed = [one for one in found if one is not None]
        return [tuple(dict.fromkeys(x for one in listed for x in one)) if len(listed) == len(found) else None]


def check_parameters(tool: Tool) -> None:
    """Raises UnenforcedError where a strict tool asks more of all arguments together than which there are."""
    if not tool.strict:
        return
    schema = tool.parameters
    refuse_others(tool, "", schema, _OF_PARAMETERS)
    declared = schema.get("properties")
    required = schema.get("required")
    if isinstance(required, list) and not set(required) <= (
        declared.keys() if isinstance(declared, Mapping) else set()
    ):
        raise UnenforcedError(tool.name, "", "required")


def refuse_others(tool: Tool, parameter: str, schema: Mapping[str, Any], enforced: frozenset[str]) -> None:
    """Raises UnenforcedError for a keyword that is none of ``enforced``."""
    keyword = other_keyword(schema, enforced)
    if keyword:
        raise UnenforcedError(tool.name, parameter, keyword)


def other_keyword(schema: Mapping[str, Any], enforced: frozenset[str]) -> str:
    """A keyword of the schema that changes what is valid and is none of ``enforced``; empty without one."""
    others = (
        keyword
        for keyword, value in schema.items()
        if keyword in ASSERTIONS and keyword not in enforced and not _is_idle(keyword, value)
    )
    return next(others, "")


def _is_idle(keyword: str, value: Any) -> bool:
    return asks_nothing(keyword, value) or (keyword in ("minLength", "minItems", "minProperties") and value == 0)
