"""Messages of the Messages API -> chat messages, checked. Knows no template.

A user's tool results become messages of their own, in the order of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penstock.errors import InvalidRequestError

_ROLES = ("user", "assistant", "system")


def chat_messages(messages: Sequence[Mapping[str, Any]], system: str | Sequence[Any] | None) -> list[dict[str, Any]]:
    """Raises InvalidRequestError that names the field, such as ``messages[2].content[0].text``."""
    reader = _Reader()
    if system:
        reader.messages.append({"role": "system", "content": _texts(system, "system")})
    for position, message in enumerate(messages):
        reader.add(message, f"messages[{position}]")
    return reader.messages


class _Reader:
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}  # id of a tool_use -> its tool

    def add(self, message: Mapping[str, Any], where: str) -> None:
        role = message.get("role")
        if role not in _ROLES:
            raise InvalidRequestError(
                f"{where}.role must be one of {', '.join(_ROLES)}, got {str(role)[:64]!r}.", param=f"{where}.role"
            )
        content = message.get("content")
        where += ".content"
        if isinstance(content, str):
            self.messages.append({"role": role, "content": content})
        elif role == "assistant":
            self._add_assistant(content, where)
        elif role == "system":
            self.messages.append({"role": "system", "content": _texts(content, where)})
        else:
            self._add_user(content, where)

    def _add_user(self, content: Any, where: str) -> None:
        texts: list[dict[str, str]] = []
        num_results = 0
        for block, here in _blocks(content, where):
            match block.get("type"):
                case "text":
                    texts.append({"type": "text", "text": _text(block.get("text"), f"{here}.text")})
                case "tool_result":
                    if texts:
                        self.messages.append({"role": "user", "content": texts})
                        texts = []
                    self._add_result(block, here)
                    num_results += 1
                case kind:
                    raise _unknown_block(kind, here, "text or tool_result")
        if texts or not num_results:
            self.messages.append({"role": "user", "content": texts})

    def _add_result(self, block: Mapping[str, Any], where: str) -> None:
        call_id = _text(block.get("tool_use_id"), f"{where}.tool_use_id")
        if call_id not in self._names:
            raise InvalidRequestError(
                f"{where}.tool_use_id is {call_id[:64]!r}, but no tool_use before it has that id.",
                param=f"{where}.tool_use_id",
            )
        content = block.get("content")
        text = "" if content is None else _joined(_texts(content, f"{where}.content"))
        if block.get("is_error") is True:
            text = f"Error: {text}"  # chat messages have no field for it
        self.messages.append({"role": "tool", "tool_call_id": call_id, "name": self._names[call_id], "content": text})

    def _add_assistant(self, content: Any, where: str) -> None:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for block, here in _blocks(content, where):
            match block.get("type"):
                case "text":
                    texts.append(_text(block.get("text"), f"{here}.text"))
                case "thinking":
                    thoughts.append(_text(block.get("thinking"), f"{here}.thinking"))
                case "redacted_thinking":
                    pass  # encrypted by another service for itself
                case "tool_use":
                    calls.append(self._read_call(block, here))
                case kind:
                    raise _unknown_block(kind, here, "text, thinking or tool_use")
        message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
        if thoughts:
            message["reasoning_content"] = "".join(thoughts)
        if calls:
            message["tool_calls"] = calls
        self.messages.append(message)

    def _read_call(self, block: Mapping[str, Any], where: str) -> dict[str, Any]:
        call_id = _text(block.get("id"), f"{where}.id")
        name = _text(block.get("name"), f"{where}.name")
        arguments = block.get("input")
        if not isinstance(arguments, Mapping):
            raise InvalidRequestError(f"{where}.input must be an object.", param=f"{where}.input")
        self._names[call_id] = name
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _texts(content: Any, where: str) -> str | list[dict[str, str]]:
    """Content that may hold text alone."""
    if isinstance(content, str):
        return content
    parts = []
    for block, here in _blocks(content, where):
        if block.get("type") != "text":
            raise _unknown_block(block.get("type"), here, "text")
        parts.append({"type": "text", "text": _text(block.get("text"), f"{here}.text")})
    return parts


def _joined(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _blocks(content: Any, where: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    if not isinstance(content, Sequence) or isinstance(content, str | bytes):
        raise InvalidRequestError(f"{where} must be a string or a list of blocks.", param=where)
    for row, block in enumerate(content):
        here = f"{where}[{row}]"
        if not isinstance(block, Mapping):
            raise InvalidRequestError(f"{here} must be an object with a type.", param=here)
        yield block, here


def _unknown_block(kind: Any, where: str, known: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{where} is a block of type {str(kind)[:64]!r}, but here it must be {known}: this model takes text only, and "
        "this server runs no tools.",
        param=f"{where}.type",
    )


def _text(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    raise InvalidRequestError(f"{where} must be a string.", param=where)
