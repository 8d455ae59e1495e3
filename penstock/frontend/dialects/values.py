"""Arguments that a dialect writes as text between tags: which JSON they stand for, by the tool's schema.

Shared by all dialects that do not write JSON. Knows schemas as plain mappings, and no tags.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from penstock.frontend.dialects.cursor import Cursor, EndOfText, Malformed, Steps
from penstock.frontend.dialects.json_scan import escape_halves, strict_json
from penstock.frontend.dialects.python_literals import read_literal
from penstock.frontend.dialects.writer import Writer

_NAMES = {
    "string": "string", "str": "string", "text": "string", "varchar": "string", "char": "string", "enum": "string",
    "integer": "integer", "int": "integer", "int32": "integer", "int64": "integer", "uint": "integer",
    "long": "integer", "short": "integer", "unsigned": "integer",
    "number": "number", "num": "number", "float": "number", "double": "number",
    "boolean": "boolean", "bool": "boolean", "binary": "boolean",
    "object": "object", "dict": "object", "map": "object",
    "array": "array", "arr": "array", "list": "array", "sequence": "array",
    "null": "null", "none": "null",
}  # fmt: skip
_PYTHON_NAMES = {"True": "true", "False": "false", "None": "null"}
_NULLS = ("null", "None")
_OPENED = {"[": "array", "{": "object"}
_WRAPPERS = frozenset({"arguments", "input", "properties"})
_EMPTY: Mapping[str, Any] = {}
_MAX_SCHEMA_DEPTH = 8
_MAX_SCHEMAS = 1024
"""Schemas that are looked at for one value; also values of an ``enum``."""
_MAX_REFERENCE = 4096
"""Characters of a reference that is followed."""
_UNIONS = ("anyOf", "oneOf", "allOf")


class Kinds:
    """Kinds of values under schemas of one ``root``. Each reference is looked up once: the work for all schemas of a
    root is bounded by its size, whatever refers to what how often."""

    __slots__ = ("_behind", "_num_left", "root")

    def __init__(self, root: Any) -> None:
        self.root = root
        self._behind: dict[str, frozenset[str]] = {}  # by reference
        self._num_left = 0

    def of(self, schema: Any) -> frozenset[str]:
        """JSON type names that a value under ``schema`` may have; empty when the schema does not say.

        Looks through ``$ref`` into the root, ``anyOf``, ``oneOf``, ``allOf``, ``enum`` and ``const``; at the first
        ``_MAX_SCHEMAS`` of them.
        """
        self._num_left = _MAX_SCHEMAS
        return self._of(schema, 0)

    def _of(self, schema: Any, depth: int) -> frozenset[str]:
        if not isinstance(schema, Mapping) or depth > _MAX_SCHEMA_DEPTH or not self._num_left:
            return frozenset()
        self._num_left -= 1
        kind = schema.get("type")
        if isinstance(kind, str):
            return frozenset((_NAMES.get(kind.lower(), "object" if kind else "string"),))
        if isinstance(kind, list):
            names = [one.lower() for one in kind[:_MAX_SCHEMAS] if isinstance(one, str)]
            return frozenset(_NAMES[name] for name in names if name in _NAMES)
        options = schema.get("enum")
        values = options if isinstance(options, list) else [schema["const"]] if "const" in schema else []
        if values:
            return frozenset(_kind_of_value(value) for value in values[:_MAX_SCHEMAS])
        reference = schema.get("$ref")
        if isinstance(reference, str):
            if reference not in self._behind:
                self._behind[reference] = frozenset()  # a schema that refers to itself says nothing more by that
                self._behind[reference] = self._of(_resolve(reference, self.root), depth + 1)
            return self._behind[reference]
        found: frozenset[str] = frozenset()
        for name in _UNIONS:
            options = schema.get(name)
            if isinstance(options, list):
                found = found.union(*(self._of(option, depth + 1) for option in options[: self._num_left]))
        if not found:
            found = frozenset(name for name, key in (("object", "properties"), ("array", "items")) if key in schema)
        return found


def kinds_of(schema: Any, root: Any = None) -> frozenset[str]:
    """``Kinds`` for a single schema."""
    return Kinds(root).of(schema)


def parameter_schema(schema: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The schema of one parameter, empty when the tool does not declare it."""
    properties = schema.get("properties")
    found = properties.get(name) if isinstance(properties, Mapping) else None
    return found if isinstance(found, Mapping) else _EMPTY


def child_schema(schema: Mapping[str, Any], name: str, root: Any) -> Mapping[str, Any]:
    """The schema of one property of an object that may stand behind a reference or be one of several."""
    for one in _alternatives(schema, root):
        found = parameter_schema(one, name) or one.get("additionalProperties")
        if found and isinstance(found, Mapping):
            return found
    return _EMPTY


def item_schema(schema: Mapping[str, Any], root: Any) -> Mapping[str, Any]:
    """The schema of a list's items, in the same way."""
    for one in _alternatives(schema, root):
        found = one.get("items")
        if found and isinstance(found, Mapping):
            return found
    return _EMPTY


def _alternatives(schema: Any, root: Any) -> Iterator[Mapping[str, Any]]:
    """The schema and what may stand in its place, each reference followed once; the first ``_MAX_SCHEMAS`` of them."""
    waiting, followed = [schema], set[str]()
    for _ in range(_MAX_SCHEMAS):
        if not waiting:
            return
        one = waiting.pop()
        if not isinstance(one, Mapping):
            continue
        yield one
        inner = []
        reference = one.get("$ref")
        if isinstance(reference, str) and reference not in followed:
            followed.add(reference)
            inner.append(_resolve(reference, root))
        for name in _UNIONS:
            options = one.get(name)
            inner += options[:_MAX_SCHEMAS] if isinstance(options, list) else ()
        waiting += reversed(inner)


def value_json(text: str, kinds: frozenset[str]) -> str:
    """JSON text of a value that was written as plain text.

    A value that is JSON of a permitted kind is kept as it was written; Python's names of constants are read too, and
    its lists and dictionaries where the schema wants an array or an object. A value that is something else is a string:
    the caller's validation sees what the model wrote.
    """
    stripped = text.strip()
    candidate = _PYTHON_NAMES.get(stripped, stripped)
    kind = _kind_of_json(candidate)
    if kind is not None and _permits(kinds, kind):
        return candidate
    if stripped[:1] in _OPENED and _OPENED[stripped[0]] in kinds and (found := _literal_json(stripped)) is not None:
        return found
    return json.dumps(text, ensure_ascii=False)


def _literal_json(text: str) -> str | None:
    """JSON text of one literal of Python's; None when ``text`` is something else."""
    cursor = Cursor()
    cursor.feed(text)
    cursor.end()
    parts: list[str] = []
    try:
        for _ in read_literal(cursor, parts.append):
            pass
    except (Malformed, EndOfText):
        return None
    return None if cursor.num_unread else "".join(parts)


def _permits(kinds: frozenset[str], kind: str) -> bool:
    if not kinds:
        return kind != "string"  # quotes are part of an undeclared value
    return kind in kinds or (kind == "integer" and "number" in kinds) or (kind == "number" and "integer" in kinds)


def _kind_of_json(text: str) -> str | None:
    try:
        return _kind_of_value(strict_json(text))
    except (ValueError, RecursionError):
        return None


def _kind_of_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    kinds = {str: "string", int: "integer", float: "number", dict: "object", list: "array"}
    return kinds.get(type(value), "object")


def _resolve(reference: str, root: Any) -> Any:
    if not reference.startswith("#") or len(reference) > _MAX_REFERENCE:
        return None
    found = root
    for part in reference[1:].strip("/").split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


class ArgumentsWriter:
    """Writes one JSON object of arguments, key by key, into the open call. ``schema`` is the tool's.

    Raises Malformed for a key that came before: what was written cannot be taken back.
    """

    __slots__ = ("_keys", "_out", "_schema")

    def __init__(self, out: Writer, schema: Mapping[str, Any]) -> None:
        self._out = out
        self._schema = schema
        self._keys: set[str] = set()

    def read_value(self, text: Cursor, key: str, *ends: str) -> Steps[str]:
        """The value of ``key`` up to one of the texts ``ends``, which is returned. Strings go out as they come; other
        values when they are complete."""
        kinds = kinds_of(parameter_schema(self._schema, key), self._schema)
        if "string" not in kinds:
            value, found = yield from text.read_until(*ends, limit=None)
            self.write(key, value_json(value, kinds))
            return found
        if "null" in kinds:
            null = yield from text.accept(*(name + end for name in _NULLS for end in ends))
            if null is not None:
                self.write(key, "null")
                return next(end for end in ends if null.endswith(end))
        self.begin_string(key)
        found = yield from text.stream_until(*ends, sink=self.string_text)
        self.end_string()
        return found

    def write(self, key: str, value: str) -> None:
        """A whole value, as JSON text."""
        self._out.arguments(self._lead(key) + value)

    def may_wrap(self, key: str) -> bool:
        """Whether ``key`` is no parameter of the tool but a usual name for all of them, with nothing before it."""
        declared = self._schema.get("properties")
        return key in _WRAPPERS and not self._keys and isinstance(declared, Mapping) and key not in declared

    def write_all(self, key: str, value: str) -> bool:
        """Write what ``value`` holds, an object or a string of one, in place of ``key``; False when it has to be
        written as itself. Models put all arguments into one of a name that the tool does not have."""
        if not self.may_wrap(key):
            return False
        declared = self._schema["properties"]
        try:
            found = json.loads(value)
            found = json.loads(found) if isinstance(found, str) else found
            if not isinstance(found, dict) or not found.keys() <= declared.keys():
                return False
            items = [(name, json.dumps(one, ensure_ascii=False, allow_nan=False)) for name, one in found.items()]
        except (ValueError, RecursionError):
            return False
        for name, text in items:
            self.write(name, escape_halves(text))
        return True

    def begin_value(self, key: str) -> None:
        """A value follows as JSON text, which goes into the call directly."""
        self._out.arguments(self._lead(key))

    def begin_string(self, key: str) -> None:
        self._out.arguments(self._lead(key) + '"')

    def string_text(self, text: str) -> None:
        self._out.arguments(json.dumps(text, ensure_ascii=False)[1:-1])

    def end_string(self) -> None:
        self._out.arguments('"')

    def close(self) -> None:
        """The object is complete; the call is not ended by this."""
        self._out.arguments("}" if self._keys else "{}")

    def _lead(self, key: str) -> str:
        if key in self._keys:
            raise Malformed(f"the parameter {key[:64]!r} comes twice")
        lead = ", " if self._keys else "{"
        self._keys.add(key)
        return f"{lead}{json.dumps(key, ensure_ascii=False)}: "
