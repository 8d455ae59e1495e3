"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.messages import normalize_messages
from penstock.frontend.exchange import Exchange
from penstock.frontend.openai.format import ChatFormat
from penstock.frontend.openai.requests import ChatRequest
from penstock.frontend.openai.sampling import chat_sampling
from penstock.frontend.routes.generate import make_head, make_shown, prepare, warn_of_ignored, write_generation
from penstock.frontend.service import Service

_RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "self", "chat_template"}
)


async def post_chat(exchange: Exchange, service: Service, request: ChatRequest) -> None:
    arrival = time.monotonic()
    model = service.model_name(request.model)
    warn_of_ignored(exchange, service, request)
    sampling = chat_sampling(request, service.assets.sampling_defaults, service.server.max_n)
    text = render_chat(
        service,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template_kwargs=request.chat_template_kwargs,
    )
    ids = await service.encode(text, add_special_tokens=bool(request.add_special_tokens))
    prepared = prepare(service, request, ids, sampling, arrival=arrival, param="messages")
    last_role = request.messages[-1].get("role") if request.continue_final_message else None
    form = ChatFormat(
        head=make_head(exchange, "chatcmpl", model),
        shown=make_shown(request, logprobs=bool(request.logprobs), max_top=request.top_logprobs or 0),
        role=last_role if isinstance(last_role, str) else "assistant",
        prompts=(prepared.prompt_token_ids,),
    )
    await write_generation(exchange, service, [prepared], form, stream=bool(request.stream))


def render_chat(
    service: Service,
    messages: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool | None,
    chat_template_kwargs: dict[str, Any] | None,
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
        add_generation_prompt=not continues if add_generation_prompt is None else add_generation_prompt,
        continue_final_message=continues,
        **kwargs,
    )
