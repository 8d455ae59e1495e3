"""Bytes of a request body -> a record, with the offending field named when they do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from penstock.errors import InvalidRequestError
from penstock.frontend.openai.requests import field_names

T = TypeVar("T", bound=Struct)

MAX_VALUES = 1 << 20
"""Values in the JSON of one body. Each takes up to VALUE_BYTES of memory, however short it is: two bytes are a list."""
VALUE_BYTES = 128

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>[^`]*)`")
_MAX_WARNED = 8


def count_values(body: bytes) -> int:
    """How many JSON values ``body`` has, counted from above. Raises InvalidRequestError when they are too many."""
    num = _num_values(body)
    if num > MAX_VALUES:
        raise InvalidRequestError(
            f"The body has more than {MAX_VALUES} JSON values. Send fewer prompts, messages or token ids at a time.",
            code="too_many_values",
        )
    return num


def decoded_bytes(body: bytes) -> int:
    """Memory that JSON takes when it is decoded, counted from above."""
    return len(body) + VALUE_BYTES * _num_values(body)


def _num_values(body: bytes) -> int:
    num = body.count(b",") + body.count(b"[") + body.count(b"{") + 1
    if num <= MAX_VALUES:
        return num
    bare = _TEXT.sub(b"", body)  # texts may have those characters, too
    return bare.count(b",") + bare.count(b"[") + bare.count(b"{") + 1


def decode_body(body: bytes, kind: type[T]) -> tuple[T, tuple[str, ...]]:
    """Read ``body`` as JSON into ``kind``; also answer the names of fields that ``kind`` does not have, but for those
    that are null, which means the default of anything.

    Raises InvalidRequestError for malformed JSON, nesting too deep for the parser, wrong types and missing fields.
    """
    try:
        raw: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequestError("The body is JSON nested too deeply.", code="invalid_json") from None
    try:
        record = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from None
    except RecursionError:
        raise InvalidRequestError("The body is JSON nested too deeply.", code="invalid_json") from None
    return record, tuple(_unknown(raw, record))


def _unknown(raw: dict[str, Any], record: Struct, prefix: str = "") -> Iterator[str]:
    known = field_names(type(record))
    for name, value in raw.items():
        if name not in known:
            if value is not None:
                yield prefix + name
        elif isinstance(inner := getattr(record, name), Struct):
            yield from _unknown(value, inner, f"{prefix}{name}.")


def _named(text: str) -> InvalidRequestError:
    match = _AT.match(text)
    assert match is not None
    what, path = match["what"], (match["path"] or "").lstrip(".")
    missing = _MISSING.search(what)
    if missing:
        path = f"{path}.{missing['name']}".lstrip(".")
        return InvalidRequestError(f"The field {path} is required.", param=path, code="missing_field")
    if not path:
        return InvalidRequestError(f"The body must be a JSON object: {what}.")
    return InvalidRequestError(f"{path}: {what}.", param=re.split(r"[.\[]", path)[0], code="invalid_type")


def warning_header(unknown: tuple[str, ...]) -> str:
    """A header value, ASCII and bounded, that names fields which were ignored."""
    shown = [re.sub(r"[^A-Za-z0-9_.\-]", "?", name[:64]) for name in unknown[:_MAX_WARNED]]
    more = f" and {len(unknown) - _MAX_WARNED} more" if len(unknown) > _MAX_WARNED else ""
    return f"unknown fields ignored: {', '.join(shown)}{more}"
