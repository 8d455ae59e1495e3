"""From request fields to a constraint: OpenAI's ``response_format`` and vLLM's ``structured_outputs``. Compiles
nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from penstock.errors import InvalidRequestError
from penstock.frontend.openai.requests import ResponseFormat, SamplingFields, StructuredOutputs
from penstock.types.structured import StructuralTag, StructuredKind, StructuredSpec, schema_text

_FORMATS = "text, json_object, json_schema or structural_tag"


def constraint_of(request: SamplingFields) -> StructuredSpec | None:
    """What the request says of the form of its answers. Raises InvalidRequestError naming the field."""
    by_format = _named("response_format", lambda: _of_format(request.response_format))
    by_fields = _named("structured_outputs", lambda: _of_fields(request.structured_outputs))
    if by_format is not None and by_fields is not None:
        raise InvalidRequestError(
            "response_format and structured_outputs exclude each other: give one of them.", param="structured_outputs"
        )
    return by_format or by_fields


def constraint_of_format(form: Mapping[str, Any] | None) -> StructuredSpec | None:
    """The same for a ``response_format`` that no request has been read from. Raises InvalidRequestError."""
    try:
        read = None if form is None else msgspec.convert(form, ResponseFormat)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"response_format is wrong: {error}.", param="response_format") from None
    return _named("response_format", lambda: _of_format(read))


def _named(param: str, make: Callable[[], StructuredSpec | None]) -> StructuredSpec | None:
    """Errors speak of the field that the caller wrote."""
    try:
        return make()
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), param=param, code=error.code) from None


def _of_format(form: ResponseFormat | None) -> StructuredSpec | None:
    if form is None or form.type == "text":
        return None
    match form.type:
        case "json_object":
            return StructuredSpec.json_object()
        case "json_schema":
            schema = None if form.json_schema is None else form.json_schema.get("schema")
            if not isinstance(schema, (dict, bool)):
                raise InvalidRequestError("response_format of type json_schema needs json_schema.schema, an object.")
            return StructuredSpec.json_schema(schema)
        case "structural_tag":
            return _of_tags(form.structures, form.triggers)
    raise InvalidRequestError(f"response_format.type must be {_FORMATS}, got {form.type[:64]!r}.")


def _of_fields(fields: StructuredOutputs | None) -> StructuredSpec | None:
    if fields is None:
        return None
    given = [
        name
        for name in ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
        if getattr(fields, name) not in (None, False)
    ]
    if len(given) != 1:
        raise InvalidRequestError(
            "structured_outputs must have one of json, regex, choice, grammar, json_object and structural_tag, "
            f"got {', '.join(given) or 'none'}."
        )
    match given[0]:
        case "json":
            assert fields.json is not None
            return StructuredSpec.json_schema(fields.json)
        case "regex":
            assert fields.regex is not None
            return StructuredSpec.regex(fields.regex)
        case "choice":
            assert fields.choice is not None
            return StructuredSpec.choice(fields.choice)
        case "grammar":
            assert fields.grammar is not None
            return StructuredSpec.grammar(fields.grammar)
        case "json_object":
            return StructuredSpec.json_object()
    tag = fields.structural_tag or {}
    return _of_tags(tag.get("structures"), tag.get("triggers"))


def _of_tags(structures: Any, triggers: Any) -> StructuredSpec:
    if not isinstance(structures, list) or not all(isinstance(one, Mapping) for one in structures):
        raise InvalidRequestError("structures must be a list of objects with begin, schema and end.")
    if not isinstance(triggers, list) or not triggers or not all(isinstance(one, str) for one in triggers):
        raise InvalidRequestError("triggers must be a list of one or more texts.")
    return StructuredSpec.structural_tags(map(_of_structure, structures), triggers=tuple(triggers))


def _of_structure(structure: Mapping[str, Any]) -> StructuralTag:
    begin, end, schema = structure.get("begin"), structure.get("end", ""), structure.get("schema", {})
    if not isinstance(begin, str) or not isinstance(end, str) or not isinstance(schema, (dict, bool)):
        raise InvalidRequestError("structures must be a list of objects with begin, schema and end.")
    return StructuralTag(begin=begin, end=end, kind=StructuredKind.JSON_SCHEMA, text=schema_text(schema))
