"""Items of the Responses API -> chat messages, checked. Knows no template.

What an assistant says in one go is several items (reasoning, a message, calls) and one chat message. Two messages of
the assistant next to each other stay two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.messages import read_arguments, read_content

_ROLES = ("user", "assistant", "system", "developer")
_KINDS = "message, reasoning, function_call or function_call_output"


def input_items(given: str | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The input as items; a text is a message of the user. Raises InvalidRequestError for an empty list."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not given:
        raise InvalidRequestError("input must be a text or contain at least one item.", param="input")
    return list(given)


def listed_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item of the input as it is listed: with its type, and a text as a part."""
    listed = {"type": "message", **item}
    if isinstance(listed.get("content"), str):
        said = listed.get("role") == "assistant"
        part = {"type": "output_text", "annotations": []} if said else {"type": "input_text"}
        listed["content"] = [{**part, "text": listed["content"]}]
    return listed


def chat_messages(
    before: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]], instructions: str | None
) -> list[dict[str, Any]]:
    """Messages of a conversation: ``instructions``, the items of earlier responses, the items of this request.

    Raises InvalidRequestError that names the field, such as ``input[2].content``.
    """
    builder = _Builder()
    if instructions:
        builder.messages.append({"role": "system", "content": instructions})
    for item in before:
        builder.add(item, "previous_response_id")
    for position, item in enumerate(items):
        builder.add(item, f"input[{position}]")
    return builder.messages


class _Builder:
    """``messages`` so far; the last one is open for items that belong to the same turn of the assistant."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None
        self._last = ""  # type of the last item of the open turn
        self._names: dict[str, str] = {}  # call id -> function

    def add(self, item: Mapping[str, Any], where: str) -> None:
        kind = item.get("type", "message" if "role" in item else None)
        match kind:
            case "message":
                self._add_message(item, where)
            case "reasoning":
                self._add_reasoning(item, where)
            case "function_call":
                self._add_call(item, where)
            case "function_call_output":
                self._add_output(item, where)
            case "item_reference":
                raise InvalidRequestError(
                    f"{where} refers to an item by its id, but items are not kept one by one. Use "
                    "previous_response_id, or send the item itself.",
                    param=where,
                )
            case _:
                raise InvalidRequestError(
                    f"{where}.type must be {_KINDS}, got {str(kind)[:64]!r}.", param=f"{where}.type"
                )

    def _open(self, kind: str) -> dict[str, Any]:
        if self._turn is None or (kind == "message" and self._last == "message"):
            self._turn = {"role": "assistant", "content": ""}
            self.messages.append(self._turn)
        self._last = kind
        return self._turn

    def _add_message(self, item: Mapping[str, Any], where: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise InvalidRequestError(
                f"{where}.role must be one of {', '.join(_ROLES)}, got {str(role)[:64]!r}.", param=f"{where}.role"
            )
        content = _content(item.get("content"), f"{where}.content")
        if role == "assistant":
            turn = self._open("message")
            turn["content"] += content if isinstance(content, str) else "".join(part["text"] for part in content)
            return
        self._turn = None
        self.messages.append({"role": role, "content": content})

    def _add_reasoning(self, item: Mapping[str, Any], where: str) -> None:
        """The text, or where there is none (another service keeps it to itself) the summary."""
        text = _parts(item.get("content"), f"{where}.content") or _parts(item.get("summary"), f"{where}.summary")
        if text:
            turn = self._open("reasoning")
            turn["reasoning_content"] = turn.get("reasoning_content", "") + text

    def _add_call(self, item: Mapping[str, Any], where: str) -> None:
        if item.get("status") == "incomplete":
            return  # its arguments were cut off: nobody has made this call
        call_id = _text(item.get("call_id"), f"{where}.call_id")
        name = _text(item.get("name"), f"{where}.name")
        arguments = read_arguments(_text(item.get("arguments"), f"{where}.arguments"), f"{where}.arguments")
        self._names[call_id] = name
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._open("function_call").setdefault("tool_calls", []).append(call)

    def _add_output(self, item: Mapping[str, Any], where: str) -> None:
        call_id = _text(item.get("call_id"), f"{where}.call_id")
        if call_id not in self._names:
            raise InvalidRequestError(
                f"{where}.call_id is {call_id[:64]!r}, but no function_call before it has that id.",
                param=f"{where}.call_id",
            )
        content = _content(item.get("output"), f"{where}.output")
        self._turn = None
        self.messages.append(
            {"role": "tool", "tool_call_id": call_id, "name": self._names[call_id], "content": content}
        )


def _content(content: Any, where: str) -> str | list[dict[str, str]]:
    found = read_content(content, where)
    if found is None:
        raise InvalidRequestError(f"{where} must be a string or a list of parts.", param=where)
    return found


def _parts(parts: Any, where: str) -> str:
    """Joined texts of reasoning_text and summary_text parts."""
    if parts is None:
        return ""
    if not isinstance(parts, Sequence) or isinstance(parts, str | bytes):
        raise InvalidRequestError(f"{where} must be a list of parts.", param=where)
    texts = []
    for row, part in enumerate(parts):
        if not isinstance(part, Mapping):
            raise InvalidRequestError(f"{where}[{row}] must be an object with type and text.", param=f"{where}[{row}]")
        texts.append(_text(part.get("text"), f"{where}[{row}].text"))
    return "".join(texts)


def _text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    raise InvalidRequestError(f"{where} must be a string.", param=where)
