"""Answers and stream chunks as records. A choice of a chunk and a choice of an answer hold the same facts."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

PromptLogprobs = list[dict[str, Any] | None]
"""One entry per prompt token: None for the first, then token id -> {logprob, rank, decoded_token}."""


class TokensDetails(Struct, kw_only=True):
    cached_tokens: int = 0


class OutputDetails(Struct, kw_only=True):
    reasoning_tokens: int = 0


class Usage(Struct, kw_only=True):
    """``completion_tokens_details`` is there when somebody reads what the output means."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: TokensDetails | None = None
    completion_tokens_details: OutputDetails | UnsetType = UNSET


class CompletionLogprobs(Struct, kw_only=True):
    """Parallel columns, one entry per token. ``text_offset`` counts characters of the choice's whole text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct, kw_only=True):
    """In a chunk ``text`` is what is new; in an answer it is all."""

    index: int
    text: str = ""
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class TopLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None = None


class ChatLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, kw_only=True):
    content: list[ChatLogprob] | None
    refusal: None = None


class CallFunction(Struct, kw_only=True):
    """``arguments`` is JSON text; in a chunk, a piece of it. The name stands in the first chunk of a call."""

    name: str | UnsetType = UNSET
    arguments: str


class ToolCallDelta(Struct, kw_only=True):
    index: int
    function: CallFunction
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ToolCallMessage(Struct, kw_only=True):
    id: str
    function: CallFunction
    type: str = "function"


class ChatDelta(Struct, kw_only=True):
    """Reasoning has two customary names; both are sent."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatMessage(Struct, kw_only=True):
    role: str
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallMessage] | UnsetType = UNSET


class ChatChoice(Struct, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    """Answer of POST /v1/completions, and the shape of its chunks."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class ChatCompletion(Struct, kw_only=True):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatChunk(Struct, kw_only=True):
    """One event of a streamed chat completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(Struct, kw_only=True):
    id: str
    created: int
    max_model_len: int
    root: str
    object: str = "model"
    owned_by: str = "penstock"
    parent: None = None


class ModelList(Struct, kw_only=True):
    data: list[ModelCard]
    object: str = "list"


class TokenizeAnswer(Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeAnswer(Struct, kw_only=True):
    prompt: str


class ErrorDetail(Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Struct, kw_only=True):
    error: ErrorDetail
