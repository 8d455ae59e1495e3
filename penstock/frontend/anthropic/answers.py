"""Messages and their blocks as records."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class TextBlock(Struct, kw_only=True, tag_field="type", tag="text"):
    text: str
    citations: None = None


class ThinkingBlock(Struct, kw_only=True, tag_field="type", tag="thinking"):
    """``signature`` is a digest of the text. Nothing checks it: thinking may come back changed."""

    thinking: str
    signature: str = ""


class ToolUseBlock(Struct, kw_only=True, tag_field="type", tag="tool_use"):
    """``input`` is an object: the arguments as the model wrote them, or what is certain of them when the output broke
    off inside them."""

    id: str
    name: str
    input: Any


Block = TextBlock | ThinkingBlock | ToolUseBlock


class OutputTokens(Struct, kw_only=True):
    thinking_tokens: int = 0


class MessageUsage(Struct, kw_only=True):
    """``input_tokens`` are those that were computed; the others of the prompt were read from the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    output_tokens_details: OutputTokens


class Message(Struct, kw_only=True):
    """Answer of POST /v1/messages, and without content the beginning of its stream."""

    id: str
    model: str
    content: list[Block]
    usage: MessageUsage
    stop_reason: str | None = None
    stop_sequence: str | None = None
    type: str = "message"
    role: str = "assistant"


class TokenCount(Struct, kw_only=True):
    """Answer of POST /v1/messages/count_tokens."""

    input_tokens: int


class MessageEvent(Struct, kw_only=True):
    """One event of a streamed message. Which further fields it has depends on its type."""

    type: str


class MessageErrorDetail(Struct, kw_only=True):
    type: str
    message: str


class MessageError(Struct, kw_only=True):
    error: MessageErrorDetail
    type: str = "error"
    request_id: str | None = None
