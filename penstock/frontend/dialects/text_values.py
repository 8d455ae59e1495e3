"""What a schema says of a value that a dialect writes as text: which texts there are, and what of it no grammar of a
dialect enforces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from penstock.frontend.dialects.contract import Tool
from penstock.frontend.dialects.values import MAX_SCHEMA_DEPTH, MAX_SCHEMAS, Kinds, kinds_of, referred_schema
from penstock.structured.keywords import ASSERTIONS, NOT_OF_TEXT, asks_nothing

_FOLLOWED = frozenset({"$ref", "type", "enum", "const", "allOf", "anyOf", "oneOf"})
"""What says nothing of strings."""
_OF_KNOWN = _FOLLOWED | NOT_OF_TEXT
_OF_PARAMETERS = frozenset({"type", "properties", "required", "additionalProperties"})
_MAX_AGAIN = 1 << 18
"""Characters of listed texts that references bring once more, over all values of a tool; a text counts 8 besides."""


class UnenforcedError(Exception):
    """A strict tool asks for what the grammar of its arguments does not enforce; ``parameter`` is empty where all of
    them are meant."""

    def __init__(self, tool: str, parameter: str, keyword: str) -> None:
        super().__init__(tool, parameter, keyword)
        self.tool = tool
        self.parameter = parameter
        self.keyword = keyword


@dataclass(frozen=True, slots=True)
class TextValues:
    """``values`` are all texts that a schema has, and None among them for null; None if any text will do.
    ``unenforced`` is a keyword that is not in that, or empty."""

    values: tuple[str | None, ...] | None
    unenforced: str


class Texts:
    """Texts that schemas of one root have, through references and alternatives.

    What is behind a reference is found once, and no more than ``MAX_SCHEMAS`` are followed for one value.
    """

    __slots__ = ("_again_left", "_behind", "_kinds", "_num_left", "_passed_over", "_unenforced")

    def __init__(self, kinds: Kinds) -> None:
        self._kinds = kinds
        self._behind: dict[tuple[str, frozenset[str]], TextValues] = {}  # by reference and what is passed over
        self._again_left = _MAX_AGAIN
        self._num_left = 0
        self._passed_over = _FOLLOWED
        self._unenforced = ""

    def of(self, schema: Any) -> TextValues:
        self._num_left = MAX_SCHEMAS
        self._passed_over = _OF_KNOWN if self._kinds.of(schema) else _FOLLOWED
        self._unenforced = ""
        values = self._find(schema, "", 0)
        if values == ():  # nothing fits; reading takes numbers of an enum for texts
            return TextValues(None, self._unenforced or "enum")
        return TextValues(values, self._unenforced)

    def _find(self, schema: Any, within: str, depth: int) -> tuple[str | None, ...] | None:
        self._num_left -= 1
        if not isinstance(schema, Mapping) or depth > MAX_SCHEMA_DEPTH or self._num_left < 0:
            self._unenforced = self._unenforced or ("" if schema is True and self._num_left >= 0 else within)
            return None
        kinds = kinds_of({"type": schema["type"]}) if "type" in schema else frozenset()
        if kinds and "string" not in kinds:
            return (None,) if "null" in kinds else ()
        found: tuple[str | None, ...] | None = None
        for keyword, value in schema.items():
            if keyword in ASSERTIONS and keyword not in self._passed_over and not _is_idle(keyword, value):
                self._unenforced = self._unenforced or keyword
            for one in self._parts(keyword, value, depth):
                found = one if found is None else found if one is None else _both(found, one)
        return tuple(x for x in found if x is not None) if found and kinds and "null" not in kinds else found

    def _parts(self, keyword: str, value: Any, depth: int) -> Iterable[tuple[str | None, ...] | None]:
        """What one keyword permits: all of these."""
        if keyword == "const" or (keyword == "enum" and isinstance(value, list)):
            options = [value] if keyword == "const" else value
            return [tuple(one for one in options if one is None or isinstance(one, str))]
        if keyword == "$ref":
            return [self._referred(value, depth)]
        if keyword not in ("allOf", "anyOf", "oneOf") or not isinstance(value, list) or not value:
            return []
        found = [self._find(one, keyword, depth + 1) for one in value[: self._num_left + 1]]
        if keyword == "allOf":
            return found
        listed = [one for one in found if one is not None]
        return [tuple(dict.fromkeys(x for one in listed for x in one)) if len(listed) == len(value) else None]

    def _referred(self, reference: Any, depth: int) -> tuple[str | None, ...] | None:
        if not isinstance(reference, str):
            return self._find(None, "$ref", depth + 1)
        key = (reference, self._passed_over)
        found = self._behind.get(key)
        if found is None:
            self._behind[key] = TextValues(None, "$ref")  # for a schema that refers to itself
            before, self._unenforced = self._unenforced, ""
            values = self._find(referred_schema(reference, self._kinds.root), "$ref", depth + 1)
            found = self._behind[key] = TextValues(values, self._unenforced)
            self._unenforced = before
        elif found.values:
            self._again_left -= sum(len(one or "") + 8 for one in found.values) if self._again_left > 0 else 0
            found = found if self._again_left > 0 else TextValues(None, "$ref")
        self._unenforced = self._unenforced or found.unenforced
        return found.values


def _both(some: tuple[str | None, ...], others: tuple[str | None, ...]) -> tuple[str | None, ...]:
    among = frozenset(others)
    return tuple(one for one in some if one in among)


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
