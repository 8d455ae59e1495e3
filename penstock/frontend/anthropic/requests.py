"""Request bodies of the Messages API as records, and the chat request that each of them is.

A field that would change the answer and is not supported is refused with a sentence. ``cache_control`` is taken
anywhere and means nothing: prefixes are cached by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.effort import thinking_switches
from penstock.frontend.openai.requests import ChatRequest, Int, ResponseFormat

_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
_MESSAGE_SCHEMA = {
    "type": "object",
    "properties": {"role": {"enum": ["user", "assistant", "system"]}, "content": _CONTENT},
    "required": ["role", "content"],
}
TurnMessage = Annotated[dict[str, Any], Meta(extra_json_schema=_MESSAGE_SCHEMA)]


class ThinkingConfig(Struct, kw_only=True):
    """``type`` is enabled, adaptive or disabled. ``budget_tokens`` is not enforced: max_tokens bounds both together.
    ``display`` omitted leaves thinking out of the answer."""

    type: str
    budget_tokens: Annotated[int, Meta(ge=1, le=2**63 - 1)] | None = None
    display: str | None = None


class ToolChoice(Struct, kw_only=True):
    """``type`` is auto, any, none, or tool with its ``name``."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Struct, kw_only=True):
    """``type`` is json_schema."""

    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(Struct, kw_only=True):
    effort: str | None = None
    format: OutputFormat | None = None


class CountTokensRequest(Struct, kw_only=True):
    """Body of POST /v1/messages/count_tokens: what of a message request makes its prompt."""

    messages: Annotated[list[TurnMessage], Meta(min_length=1)]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mcp_servers: list[dict[str, Any]] | None = None
    context_management: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    """Body of POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    container: str | dict[str, Any] | None = None


CHAT_NAMES: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "json_schema.schema": "schema",
    ".function.parameters": ".input_schema",
    ".function": "",
}
"""Fields of the chat request that is made from this one -> what the caller wrote."""

REMOVED: Mapping[str, str] = {
    "prompt": "it was last taken by Anthropic's Text Completions API. Use messages",
    "max_tokens_to_sample": "it was last taken by Anthropic's Text Completions API. Use max_tokens",
    "stop": "it belongs to /v1/chat/completions. Use stop_sequences",
    "max_completion_tokens": "it belongs to /v1/chat/completions. Use max_tokens",
    "response_format": "it belongs to /v1/chat/completions. Use output_config.format",
    "reasoning_effort": "it belongs to /v1/chat/completions. Use output_config.effort",
    "output_format": "it was last taken by a beta of Anthropic's API. Use output_config.format",
    "n": "the Messages API has one answer per request. Send several requests, or use /v1/chat/completions",
}

_UNSUPPORTED: Mapping[str, str] = {
    "mcp_servers": "this server calls no other servers. Describe their functions in tools and answer the calls",
    "container": "nothing is run here. Leave it out",
}


def refuse_unsupported(request: CountTokensRequest) -> None:
    """Raises InvalidRequestError for what the server cannot do and must not ignore."""
    for name, why in _UNSUPPORTED.items():
        if getattr(request, name, None):
            raise InvalidRequestError(f"{name} is not supported: {why}.", param=name)
    edits = (request.context_management or {}).get("edits")
    if edits and not (isinstance(edits, list) and all(_keeps_all(edit) for edit in edits)):
        raise InvalidRequestError(
            "context_management is not supported: messages are not edited here. Send what the model shall see.",
            param="context_management",
        )
    thinking = request.thinking
    if thinking is not None and thinking.type not in ("enabled", "adaptive", "disabled"):
        raise InvalidRequestError(
            f"thinking.type must be enabled, adaptive or disabled, got {thinking.type[:64]!r}.", param="thinking.type"
        )
    if thinking is not None and thinking.display not in (None, "summarized", "omitted"):
        raise InvalidRequestError(
            f"thinking.display must be summarized or omitted, got {thinking.display[:64]!r}.", param="thinking.display"
        )


def _keeps_all(edit: Any) -> bool:
    """An edit that takes nothing away, as agents send it by default."""
    if not isinstance(edit, Mapping):
        return False
    return str(edit.get("type")).startswith("clear_thinking") and edit.get("keep") == "all"


def shows_thinking(request: CountTokensRequest) -> bool:
    """Whether the answer has thinking blocks; by the API, only when they were asked for."""
    thinking = request.thinking
    return thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"


def chat_request(request: CountTokensRequest, messages: list[dict[str, Any]]) -> ChatRequest:
    """The same request to the chat route. A last message of the assistant is the beginning of the answer.

    Raises InvalidRequestError naming the field.
    """
    output = request.output_config
    chat = ChatRequest(
        messages=messages,
        model=request.model,
        continue_final_message=messages[-1]["role"] == "assistant" or None,
        response_format=_response_format(output.format) if output is not None else None,
        reasoning_effort=output.effort if output is not None else None,
        tools=[_chat_tool(tool, f"tools[{row}]") for row, tool in enumerate(request.tools or ())] or None,
        tool_choice=_chat_choice(request.tool_choice),
        parallel_tool_calls=False if request.tool_choice and request.tool_choice.disable_parallel_tool_use else None,
        chat_template_kwargs={**_thinking_variables(request), **(request.chat_template_kwargs or {})},
    )
    if isinstance(request, MessagesRequest):
        chat.max_completion_tokens = request.max_tokens
        chat.stream = request.stream
        chat.stop = request.stop_sequences or None
        chat.temperature, chat.top_p, chat.top_k = request.temperature, request.top_p, request.top_k
    return chat


def _thinking_variables(request: CountTokensRequest) -> dict[str, Any]:
    """Without ``thinking`` the model shall not think; adaptive leaves it to the model."""
    if request.thinking is not None and request.thinking.type == "adaptive":
        return {}
    return thinking_switches(request.thinking is not None and request.thinking.type == "enabled")


def _response_format(form: OutputFormat | None) -> ResponseFormat | None:
    if form is None:
        return None
    if form.type != "json_schema":
        raise InvalidRequestError(
            f"output_config.format.type must be json_schema, got {form.type[:64]!r}.", param="output_config.format.type"
        )
    return ResponseFormat(type="json_schema", json_schema={"schema": form.schema})


def _chat_tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise InvalidRequestError(
            f"{where}.type must be 'custom' or left out, got {str(kind)[:64]!r}: this server runs no tools itself. "
            "Describe a tool with an input_schema and answer its calls.",
            param=f"{where}.type",
        )
    if not isinstance(tool.get("input_schema"), Mapping):
        raise InvalidRequestError(
            f"{where}.input_schema must be a JSON schema, an object.", param=f"{where}.input_schema"
        )
    function = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**function, "parameters": tool["input_schema"]}}


def _chat_choice(choice: ToolChoice | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    match choice.type:
        case "auto" | "none":
            return choice.type
        case "any":
            return "required"
        case "tool":
            return {"type": "function", "function": {"name": choice.name}}
    raise InvalidRequestError(
        f"tool_choice.type must be auto, any, tool or none, got {choice.type[:64]!r}.", param="tool_choice.type"
    )
