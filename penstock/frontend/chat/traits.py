"""What shape of messages a chat template takes, found by rendering small conversations, and bringing messages into it.

Templates do not declare this; reading their code is guesswork, while a rendering shows it (the idea is llama.cpp's).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NEEDLE = "penstock7needle"
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """``takes_strings`` and ``takes_parts``: which kinds of content it prints. ``takes_developer``: it knows that
    role. ``wants_argument_text``: tool call arguments must be a JSON string. ``wants_no_content``: it prints tool
    calls only of an assistant message whose content is None. ``takes_tools``: it prints the tools of a request."""

    takes_strings: bool = True
    takes_parts: bool = False
    takes_developer: bool = False
    wants_argument_text: bool = False
    wants_no_content: bool = False
    takes_tools: bool = False


def probe_traits(source: str, render: Callable[..., str]) -> TemplateTraits:
    """``render`` gives the text of a conversation and of its ``tools``, empty when the template refuses it."""
    parts = render([{"role": "user", "content": [{"type": "text", "text": _NEEDLE}]}])
    takes_parts = _NEEDLE in parts and "'text'" not in parts and '"text"' not in parts
    argument_text, no_content = _tool_call_shape(render)
    return TemplateTraits(
        takes_strings=not takes_parts or _NEEDLE in render([{"role": "user", "content": _NEEDLE}]),
        takes_parts=takes_parts,
        takes_developer="developer" in source,
        wants_argument_text=argument_text,
        wants_no_content=no_content,
        takes_tools=any(_prints_tools(render, role) for role in ("user", "system")),
    )


def _prints_tools(render: Callable[..., str], first_role: str) -> bool:
    """Some templates print tools only where there is a system message."""
    function = {"name": _NEEDLE, "description": "", "parameters": {"type": "object", "properties": {}}}
    messages = [{"role": first_role, "content": "Hello"}, {"role": "user", "content": "Hello"}]
    return _NEEDLE in render(
        messages if first_role == "system" else messages[1:], [{"type": "function", "function": function}]
    )


def _tool_call_shape(render: Callable[[list[dict[str, Any]]], str]) -> tuple[bool, bool]:
    """The first shape whose rendering shows the call's arguments; empty content is safer than None in most."""
    for no_content in (False, True):
        for argument_text in (False, True):
            arguments = json.dumps({"key": _NEEDLE}) if argument_text else {"key": _NEEDLE}
            if _NEEDLE in render(_tool_conversation(arguments, None if no_content else "")):
                return argument_text, no_content
    return False, False


def shape_messages(messages: Sequence[Mapping[str, Any]], traits: TemplateTraits) -> list[dict[str, Any]]:
    """Copies in the shape that the template takes; parts that must become a string are joined by newlines.

    What is not changed is shared with the caller's messages; the sandbox keeps templates from changing it.
    """
    return [_shape(message, traits) for message in messages]


def _shape(message: Mapping[str, Any], traits: TemplateTraits) -> dict[str, Any]:
    shaped: dict[str, Any] = dict(message)
    if shaped.get("role") == "developer" and not traits.takes_developer:
        shaped["role"] = "system"
    shaped["content"] = _shape_content(shaped, traits)
    if traits.wants_argument_text and shaped.get("tool_calls"):
        shaped["tool_calls"] = [_with_argument_text(call) for call in shaped["tool_calls"]]
    reasoning = next((shaped[name] for name in _REASONING if shaped.get(name) is not None), None)
    if reasoning is not None:
        shaped = {"thinking": reasoning, **shaped, "reasoning_content": reasoning}
    return shaped


def _shape_content(message: Mapping[str, Any], traits: TemplateTraits) -> str | list[dict[str, Any]] | None:
    content = message.get("content")
    if traits.wants_no_content and message.get("tool_calls") and not content:
        return None
    if content is None:
        return "" if traits.takes_strings else []
    if isinstance(content, str):
        return content if traits.takes_strings else [{"type": "text", "text": content}]
    if traits.takes_parts:
        return [dict(part) for part in content]
    return "\n".join(part["text"] for part in content if "text" in part)


def _with_argument_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    if not isinstance(function.get("arguments"), str):
        function["arguments"] = json.dumps(function.get("arguments"), ensure_ascii=False)
    return {**call, "function": function}


def _tool_conversation(arguments: Any, content: str | None) -> list[dict[str, Any]]:
    call = {"id": "call00001", "type": "function", "function": {"name": "lookup", "arguments": arguments}}
    return [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
    ]
