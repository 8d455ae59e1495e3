"""Which keywords of a JSON schema a backend enforces: everything else that would change what is valid is refused by
name.

A keyword that is silently left out gives answers that the schema refuses, and nobody hears of it. Keywords that no
vocabulary knows are annotations by the standard (JSON Schema 2020-12, core, 6.5) and stay; but one that is nearly
written like a known one is refused as well, because it is a slip of the pen.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from penstock.structured.contract import ConstraintError
from penstock.types.strict_json import loads_strict

MAX_DEPTH = 64
"""Of schemas within schemas; the libraries' parsers take about 128 levels of JSON."""

ANNOTATIONS = frozenset(
    [
        "$schema",
        "$id",
        "id",
        "$anchor",
        "$defs",
        "definitions",
        "$comment",
        "$vocabulary",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentMediaType",
        "contentEncoding",
        "contentSchema",
        "externalDocs",
        "xml",
        "discriminator",
    ]
)

NOT_OF_TEXT = frozenset(
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
"""Keywords that say something about objects, lists or numbers alone."""

# Every keyword of the drafts 3 to 2020-12 and of OpenAPI's dialect that changes what is valid.
ASSERTIONS = NOT_OF_TEXT | frozenset(
    [
        "$ref",
        "$dynamicRef",
        "$dynamicAnchor",
        "$recursiveRef",
        "$recursiveAnchor",
        "type",
        "enum",
        "const",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "extends",
        "disallow",
    ]
)

# Values that ask for nothing: the keyword is left out.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "nullable": (False,),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "propertyNames": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "not": (False,),
    "format": ("password", "binary", "int32", "int64", "uint32", "uint64", "float", "double", "unknown"),  # OpenAPI's
    "$recursiveAnchor": (False,),
}
_ONE = frozenset(
    [
        "not",
        "if",
        "then",
        "else",
        "additionalProperties",
        "unevaluatedProperties",
        "propertyNames",
        "items",
        "additionalItems",
        "unevaluatedItems",
        "contains",
    ]
)
_MANY = frozenset(["allOf", "anyOf", "oneOf", "prefixItems", "items"])
_BY_NAME = frozenset(["properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"])


def checked_schema(text: str, enforced: frozenset[str], backend: str) -> Any:
    """The schema as a value, without keywords that ask for nothing. Raises ConstraintError naming what is wrong."""
    try:
        schema = loads_strict(text)
    except RecursionError:
        raise ConstraintError("The JSON schema is nested too deeply.") from None
    except ValueError as error:
        raise ConstraintError(f"The JSON schema is not valid JSON: {error}.") from None
    return _checked(schema, "#", 0, enforced, backend)


def each_schema(schema: Any, at: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """A checked schema and all schemas inside, each with its place; without those that are only true or false."""
    if isinstance(schema, dict):
        yield at, schema
        for _, path, inner in _inner(schema, at):
            yield from each_schema(inner, "/".join((at, *map(_escaped, path))))


def asks_nothing(keyword: str, value: Any) -> bool:
    """Whether the keyword changes nothing with this value."""
    return any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL.get(keyword, ()))


def _checked(schema: Any, at: str, depth: int, enforced: frozenset[str], backend: str) -> Any:
    if depth > MAX_DEPTH:
        raise ConstraintError(f"The JSON schema is nested too deeply: more than {MAX_DEPTH} levels of schemas.")
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise ConstraintError(f"The JSON schema must have an object, true or false at {at}, got {shown(schema)}.")
    kept: dict[str, Any] = {}
    for keyword, value in schema.items():
        if asks_nothing(keyword, value):
            continue
        if keyword not in enforced and keyword not in ANNOTATIONS:
            _refuse(keyword, at, enforced, backend)
        kept[keyword] = value
    copied: set[str] = set()  # once for all that is inside: schemas may be many
    for keyword, path, inner in _inner(kept, at):
        checked = _checked(inner, "/".join((at, *map(_escaped, path))), depth + 1, enforced, backend)
        if len(path) == 1:
            kept[keyword] = checked
            continue
        if keyword not in copied:
            copied.add(keyword)
            kept[keyword] = kept[keyword].copy()
        kept[keyword][int(path[1]) if isinstance(kept[keyword], list) else path[1]] = checked
    return kept


def _inner(schema: dict[str, Any], at: str) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Schemas inside, each with its keyword and its path below ``at``."""
    for keyword, value in list(schema.items()):
        if keyword in _BY_NAME and isinstance(value, dict):
            for name, inner in value.items():
                if not (keyword == "dependencies" and isinstance(inner, list)):
                    yield keyword, (keyword, name), inner
        elif keyword in _MANY and isinstance(value, list):
            for index, inner in enumerate(value):
                yield keyword, (keyword, str(index)), inner
        elif keyword in _ONE and not isinstance(value, list):
            yield keyword, (keyword,), value
        elif keyword in _BY_NAME or keyword in _MANY or keyword in _ONE:
            raise ConstraintError(f"The keyword {keyword} at {at} has no value that a JSON schema may have there.")


def _refuse(keyword: str, at: str, enforced: frozenset[str], backend: str) -> None:
    if keyword in ASSERTIONS:
        raise ConstraintError(
            f"The JSON schema keyword {keyword} (at {at}) cannot be enforced by {backend}. Leave it out and check it "
            "yourself, or express it otherwise."
        )
    if keyword == "x-guidance":
        raise ConstraintError("x-guidance is not taken from requests: it could switch checks off. Leave it out.")
    if keyword.startswith(("x-", "_")):
        return
    close = difflib.get_close_matches(keyword, sorted(enforced), n=1, cutoff=0.85)
    if close:
        raise ConstraintError(
            f"The JSON schema has an unknown keyword {shown(keyword)} at {at}. Write {close[0]} if that is what you "
            f"mean, or x-{keyword} if it is an annotation."
        )


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
