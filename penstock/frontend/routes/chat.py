"""POST /v1/chat/completions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.effort import effort_variables, knows_effort
from penstock.frontend.chat.messages import normalize_messages
from penstock.frontend.chat.tools import ToolUse, read_tool_use
from penstock.frontend.chatting import check_tools, constrain_answer, plan_reading
from penstock.frontend.exchange import Exchange
from penstock.frontend.openai.format import ChatFormat
from penstock.frontend.openai.requests import ChatRequest
from penstock.frontend.openai.sampling import chat_sampling
from penstock.frontend.routes.generate import make_head, make_shown, prepare, warn, warn_of_ignored, write_generation
from penstock.frontend.service import Service
from penstock.frontend.text.requests import PreparedRequest

_RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "self", "chat_template"}
)


async def post_chat(exchange: Exchange, service: Service, request: ChatRequest) -> None:
    arrival = time.monotonic()
    model = service.model_name(request.model)
    prepared = await prepare_chat(exchange, service, request, arrival=arrival)
    last_role = request.messages[-1].get("role") if request.continue_final_message else None
    form = ChatFormat(
        head=make_head(exchange, "chatcmpl-", model),
        shown=make_shown(request, logprobs=bool(request.logprobs), max_top=request.top_logprobs or 0),
        role=last_role if isinstance(last_role, str) else "assistant",
        prompts=(prepared.prompt_token_ids,),
        include_reasoning=request.include_reasoning is not False,
    )
    await write_generation(exchange, service, [prepared], form, stream=bool(request.stream))


async def prepare_chat(
    exchange: Exchange, service: Service, request: ChatRequest, *, arrival: float, fit_context: bool = False
) -> PreparedRequest:
    """From a conversation to what the engine gets; what all chat protocols share. Raises InvalidRequestError.

    ``fit_context``: where the context has no room for the asked tokens, ask for as many as it has room for.
    """
    warn_of_ignored(exchange, service, request)
    sampling = chat_sampling(request, service.assets.sampling_defaults, service.server.max_n)
    use = read_tool_use(request.tools, request.tool_choice, request.parallel_tool_calls)
    assets = service.assets
    check_tools(assets, use)
    text = await service.render(len(request.messages), lambda: render_request(exchange, service, request, use))
    reading = plan_reading(assets, text, use, request.messages, continues=bool(request.continue_final_message))
    sampling = constrain_answer(assets, sampling, use, reading, enforced=service.constrains_output)
    ids = await service.encode(text, add_special_tokens=bool(request.add_special_tokens))
    room = service.client.info.max_model_len - len(ids)
    if fit_context and sampling.max_tokens is not None and 0 < room < sampling.max_tokens:
        sampling = dataclasses.replace(sampling, max_tokens=room)
    return prepare(service, request, ids, sampling, arrival=arrival, param="messages", reading=reading)


async def count_prompt(exchange: Exchange, service: Service, request: ChatRequest) -> int:
    """Tokens of the prompt that a conversation becomes, also where the context has no room for them."""
    use = read_tool_use(request.tools, request.tool_choice, request.parallel_tool_calls)
    check_tools(service.assets, use)
    text = await service.render(len(request.messages), lambda: render_request(exchange, service, request, use))
    return len(await service.encode(text, add_special_tokens=bool(request.add_special_tokens)))


def render_request(exchange: Exchange, service: Service, request: ChatRequest, use: ToolUse) -> str:
    """The prompt text of a request, with the tools that it shows and the effort that it asks for."""
    template = service.assets.chat_template
    if request.reasoning_effort is not None and template is not None and not knows_effort(template.sources.values()):
        warn(exchange, "reasoning_effort ignored: the model's chat template does not look at it")
    return render_chat(
        service,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template_kwargs=effort_variables(request.reasoning_effort, request.chat_template_kwargs or {}),
        tools=use.shown,
    )


def render_chat(
    service: Service,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool | None,
    chat_template_kwargs: dict[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The prompt text of a conversation. Raises InvalidRequestError, also for a model without a template."""
    template = service.assets.chat_template
    if template is None:
        raise InvalidRequestError(
            "The served model has no chat template. Use /v1/completions, or start the server with --chat-template.",
            param="messages",
        )
    continues = bool(continue_final_message)
    if continues and add_generation_prompt:
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt exclude each other.", param="continue_final_message"
        )
    kwargs = chat_template_kwargs or {}
    for name in kwargs:
        if name in _RESERVED:
            raise InvalidRequestError(
                f"chat_template_kwargs must not contain {name}; it is a field of the request.",
                param="chat_template_kwargs",
            )
    return template.render(
        normalize_messages(messages),
        tools=tools,
        add_generation_prompt=not continues if add_generation_prompt is None else add_generation_prompt,
        continue_final_message=continues,
        **kwargs,
    )
