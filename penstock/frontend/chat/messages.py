"""OpenAI chat messages: checked, and brought into the one shape that chat templates are given.

Knows roles and content parts; does not know templates (``template`` decides how content and roles must look for it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import InvalidRequestError

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_PASSED = ("name", "tool_call_id", "reasoning_content", "reasoning")


def normalize_messages(messages: Any, *, param: str = "messages") -> list[dict[str, Any]]:
    """Messages of a request as plain dictionaries: ``role``, ``content``, ``tool_calls`` with parsed arguments.

    ``content`` is a string, a list of ``{"type": "text", "text": ...}``, or None for an assistant that only calls
    tools; the template's traits decide what becomes of it. Raises InvalidRequestError that names the field, such as
    ``messages[2].content``.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InvalidRequestError(f"{param} must be a list of messages.", param=param)
    if not messages:
        raise InvalidRequestError(f"{param} must contain at least one message.", param=param)
    return [_normalize(message, f"{param}[{position}]") for position, message in enumerate(messages)]


def _normalize(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(f"{where} must be an object with role and content.", param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequestError(
            f"{where}.role must be one of {', '.join(sorted(ROLES))}, got {role!r}.", param=f"{where}.role"
        )
    calls = _tool_calls(message.get("tool_calls"), f"{where}.tool_calls")
    if calls and role != "assistant":
        raise InvalidRequestError(
            f"{where}.tool_calls belongs to assistant messages only.", param=f"{where}.tool_calls"
        )
    content = read_content(message.get("content"), f"{where}.content")
    if content is None and role == "assistant":
        content = _string(message.get("refusal"), f"{where}.refusal")
    if content is None and not calls:
        if role != "assistant":
            raise InvalidRequestError(f"{where}.content must be a string or text parts.", param=f"{where}.content")
        content = ""
    normalized: dict[str, Any] = {"role": role, "content": content}
    for field in _PASSED:
        value = _string(message.get(field), f"{where}.{field}")
        if value is not None:
            normalized[field] = value
    if calls:
        normalized["tool_calls"] = calls
    return normalized


def read_content(content: Any, where: str) -> str | list[dict[str, str]] | None:
    """A text, or parts as ``{"type": "text", "text": ...}``. Raises InvalidRequestError with the place."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InvalidRequestError(f"{where} must be a string or a list of parts.", param=where)
    return [{"type": "text", "text": _part_text(part, f"{where}[{row}]")} for row, part in enumerate(content)]


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise InvalidRequestError(f"{where} must be an object with type and text.", param=where)
    kind = part.get("type")
    field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise InvalidRequestError(
            f"{where} is a part of type {str(kind)[:64]!r}, but this model takes text only.", param=where
        )
    text = part.get(field)
    if not isinstance(text, str):
        raise InvalidRequestError(f"{where}.{field} must be a string.", param=f"{where}.{field}")
    return text


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if calls is None:
        return []
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise InvalidRequestError(f"{where} must be a list.", param=where)
    return [_tool_call(call, f"{where}[{position}]") for position, call in enumerate(calls)]


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(f"{where} must have a function with a name.", param=where)
    result: dict[str, Any] = {"type": "function"}
    call_id = _string(call.get("id"), f"{where}.id")
    if call_id is not None:
        result["id"] = call_id
    result["function"] = {
        "name": function["name"],
        "arguments": read_arguments(function.get("arguments"), f"{where}.function.arguments"),
    }
    return result


def read_arguments(arguments: Any, where: str) -> Mapping[str, Any]:
    """An object: templates print it as JSON, or walk it. OpenAI sends it as a JSON string. Raises InvalidRequestError
    with the place."""
    if isinstance(arguments, Mapping):
        return arguments
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            return parsed
    raise InvalidRequestError(f"{where} must be a JSON object, as a string.", param=where)


def _string(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InvalidRequestError(f"{where} must be a string.", param=where)
