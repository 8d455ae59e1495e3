"""Request bodies of the Responses API as records, and what of them this server refuses.

A field that would change the answer and is not supported is refused with a sentence; one that changes nothing here
(billing, safety, obfuscation) is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from penstock.errors import InvalidRequestError
from penstock.frontend.openai.requests import ChatRequest, Int, ResponseFormat, TokenId

_ITEM_SCHEMA = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "role": {"type": "string"}},
    "description": "A message, reasoning, a function_call or a function_call_output.",
}
Item = Annotated[dict[str, Any], Meta(extra_json_schema=_ITEM_SCHEMA)]


class ReasoningConfig(Struct, kw_only=True):
    """``effort`` as in chat. There are no summaries: reasoning comes back whole."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class TextFormat(Struct, kw_only=True):
    """``type`` is text, json_object or json_schema; the other fields belong to json_schema."""

    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextConfig(Struct, kw_only=True):
    format: TextFormat | None = None
    verbosity: str | None = None


class EventOptions(Struct, kw_only=True):
    """Obfuscation pads events of a service that many share; there is none here."""

    include_obfuscation: bool | None = None


class ResponsesRequest(Struct, kw_only=True):
    """Body of POST /v1/responses."""

    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: EventOptions | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**63 - 1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Int | None = None
    include: list[str] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    max_tool_calls: Int | None = None
    background: bool | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    context_management: list[dict[str, Any]] | None = None
    moderation: dict[str, Any] | None = None
    # Sampling as in chat, which the official API does not have.
    top_k: Int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    min_tokens: Int | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: str | None = None
    request_timeout: Annotated[float, Meta(gt=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


SAMPLING = (
    "model", "stream", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "stop", "stop_token_ids", "min_tokens", "ignore_eos", "priority", "cache_salt",
    "request_timeout", "chat_template_kwargs", "parallel_tool_calls", "top_logprobs",
)  # fmt: skip
"""Fields that mean in chat what they mean here."""

CHAT_NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "json_schema.schema": "schema",
    "logprobs": "include",
    ".function": "",
}
"""Fields of the chat request that is made from this one -> what the caller wrote."""

REMOVED: Mapping[str, str] = {
    "messages": "it belongs to /v1/chat/completions. Use input",
    "max_tokens": "it belongs to /v1/chat/completions. Use max_output_tokens",
    "max_completion_tokens": "it belongs to /v1/chat/completions. Use max_output_tokens",
    "response_format": "it belongs to /v1/chat/completions. Use text.format",
    "reasoning_effort": "it belongs to /v1/chat/completions. Use reasoning.effort",
    "functions": "it was last taken by OpenAI's chat API of 2023. Use tools",
    "function_call": "it was last taken by OpenAI's chat API of 2023. Use tool_choice",
    "logprobs": "it belongs to /v1/chat/completions. Use include with message.output_text.logprobs",
    "n": "the Responses API has one answer per request. Send several requests, or use /v1/chat/completions",
}

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"

_UNSUPPORTED: Mapping[str, str] = {
    "background": "responses are not made in the background here. Leave it out and read the answer or its stream",
    "conversation": "conversations are not kept here. Use previous_response_id, or send the items in input",
    "prompt": "prompt templates are not kept here. Send instructions and input",
    "context_management": "items are not compacted here. Send the input that the model shall see",
    "moderation": "nothing is moderated here. Leave it out",
}


def refuse_unsupported(request: ResponsesRequest) -> None:
    """Raises InvalidRequestError for what the server cannot do and must not ignore."""
    for name, why in _UNSUPPORTED.items():
        if getattr(request, name):
            raise InvalidRequestError(f"{name} is not supported: {why}.", param=name)
    if request.truncation not in (None, "disabled"):
        raise InvalidRequestError(
            "truncation must be disabled: this server does not drop items from the input. Send fewer.",
            param="truncation",
        )
    for name in request.include or ():
        if name not in (LOGPROBS, ENCRYPTED):
            raise InvalidRequestError(
                f"include must hold only {LOGPROBS} and {ENCRYPTED}, got {name[:64]!r}: the server has no other "
                "outputs.",
                param="include",
            )
    if request.top_logprobs and LOGPROBS not in (request.include or ()):
        raise InvalidRequestError(f"top_logprobs needs {LOGPROBS} in include.", param="top_logprobs")


def chat_request(request: ResponsesRequest, messages: list[dict[str, Any]]) -> ChatRequest:
    """The same request to the chat route. Raises InvalidRequestError naming the field."""
    form = request.text.format if request.text is not None else None
    response_format = None
    if form is not None and form.type != "text":
        if form.type not in ("json_object", "json_schema"):
            raise InvalidRequestError(
                f"text.format.type must be text, json_object or json_schema, got {form.type[:64]!r}.",
                param="text.format.type",
            )
        response_format = ResponseFormat(
            type=form.type, json_schema={"schema": form.schema} if form.type == "json_schema" else None
        )
    return ChatRequest(
        messages=messages,
        max_completion_tokens=request.max_output_tokens,
        logprobs=LOGPROBS in (request.include or ()) or None,
        response_format=response_format,
        reasoning_effort=request.reasoning.effort if request.reasoning is not None else None,
        tools=[_chat_tool(tool, f"tools[{row}]") for row, tool in enumerate(request.tools or ())] or None,
        tool_choice=_chat_choice(request.tool_choice),
        **{name: getattr(request, name) for name in SAMPLING},
    )


def _chat_tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise InvalidRequestError(
            f"{where}.type must be 'function', got {str(kind)[:64]!r}: this server runs no tools itself. Describe a "
            "function and answer its calls.",
            param=f"{where}.type",
        )
    return {
        "type": "function",
        "function": {
            name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None
        },
    }


def _chat_choice(choice: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    if choice is None or isinstance(choice, str):
        return choice
    kind = choice.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind == "allowed_tools":
        tools = choice.get("tools")
        allowed = [{"type": one.get("type"), "function": one} for one in tools or () if isinstance(one, Mapping)]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": allowed}}
    raise InvalidRequestError(
        "tool_choice must be auto, none, required, {'type': 'function', 'name': NAME} or of type allowed_tools: this "
        "server runs no tools itself.",
        param="tool_choice",
    )
