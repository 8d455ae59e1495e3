"""Responses and their items as records; they are written, and read back for the next request of a conversation."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from penstock.frontend.openai.answers import ChatLogprob

IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED = "in_progress", "completed", "incomplete", "failed"


class OutputText(Struct, kw_only=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] = []


class ReasoningPart(Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    text: str


class OutputMessage(Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: str
    content: list[OutputText]
    role: str = "assistant"


class ReasoningItem(Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """Reasoning is not summarised: ``content`` has all of it."""

    id: str
    status: str
    content: list[ReasoningPart]
    summary: list[Any] = []
    encrypted_content: None = None


class FunctionCall(Struct, kw_only=True, tag_field="type", tag="function_call"):
    """``arguments`` is JSON text; broken off where ``status`` is incomplete."""

    id: str
    call_id: str
    name: str
    status: str
    arguments: str


OutputItem = OutputMessage | ReasoningItem | FunctionCall


class InputTokensDetails(Struct, kw_only=True):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, kw_only=True):
    reasoning_tokens: int = 0


class ResponseUsage(Struct, kw_only=True):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens_details: OutputTokensDetails


class ResponseError(Struct, kw_only=True):
    code: str
    message: str


class IncompleteDetails(Struct, kw_only=True):
    reason: str


class Response(Struct, kw_only=True):
    """Answer of POST /v1/responses and of GET /v1/responses/{id}; also part of events that begin and end a stream."""

    id: str
    created_at: int
    model: str
    status: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    tool_choice: Any
    tools: list[dict[str, Any]]
    store: bool
    text: dict[str, Any]
    reasoning: dict[str, Any]
    object: str = "response"
    background: bool = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = {}
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str = "default"
    top_logprobs: int = 0
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class DeletedResponse(Struct, kw_only=True):
    """Answer of DELETE /v1/responses/{id}."""

    id: str
    object: str = "response"
    deleted: bool = True


class InputTokens(Struct, kw_only=True):
    """Answer of POST /v1/responses/input_tokens."""

    input_tokens: int
    object: str = "response.input_tokens"


class ItemList(Struct, kw_only=True):
    """Answer of GET /v1/responses/{id}/input_items, newest first."""

    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool
    object: str = "list"


class ResponseEvent(Struct, kw_only=True):
    """One event of a streamed response. Which further fields it has depends on its type."""

    type: str
    sequence_number: int
