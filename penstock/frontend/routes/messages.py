"""/v1/messages: Anthropic's Messages API."""

from __future__ import annotations

import time

from penstock.frontend.anthropic.answers import TokenCount
from penstock.frontend.anthropic.conversation import chat_messages
from penstock.frontend.anthropic.format import MessageFormat
from penstock.frontend.anthropic.requests import (
    CHAT_NAMES,
    CountTokensRequest,
    MessagesRequest,
    chat_request,
    refuse_unsupported,
    shows_thinking,
)
from penstock.frontend.chat.effort import knows_effort
from penstock.frontend.chat.naming import renamed
from penstock.frontend.exchange import Exchange
from penstock.frontend.openai.encode import encode_json
from penstock.frontend.routes.chat import count_prompt, prepare_chat
from penstock.frontend.routes.generate import make_head, warn, write_generation
from penstock.frontend.service import Service


async def post_message(exchange: Exchange, service: Service, request: MessagesRequest) -> None:
    arrival = time.monotonic()
    model = service.model_name(request.model)
    refuse_unsupported(request)
    _warn_of_ignored(exchange, service, request)
    head = make_head(exchange, "msg_", model)
    exchange.extra_headers.append(("request-id", head.id))  # under the name that clients of this API read
    messages = chat_messages(request.messages, request.system)
    with renamed(CHAT_NAMES):
        chat = chat_request(request, messages)
        prepared = await prepare_chat(exchange, service, chat, arrival=arrival, fit_context=True)
    form = MessageFormat(
        head=head,
        num_prompt=len(prepared.prompt_token_ids),
        include_thinking=shows_thinking(request),
        fills_context=prepared.sampling.max_tokens is not None and prepared.sampling.max_tokens < request.max_tokens,
    )
    await write_generation(exchange, service, [prepared], form, stream=bool(request.stream))


async def post_count_tokens(exchange: Exchange, service: Service, request: CountTokensRequest) -> None:
    service.model_name(request.model)
    refuse_unsupported(request)
    messages = chat_messages(request.messages, request.system)
    with renamed(CHAT_NAMES):
        num_tokens = await count_prompt(exchange, service, chat_request(request, messages))
    await exchange.answer(200, encode_json(TokenCount(input_tokens=num_tokens)))


def _warn_of_ignored(exchange: Exchange, service: Service, request: MessagesRequest) -> None:
    thinking, template = request.thinking, service.assets.chat_template
    if thinking is None or thinking.type == "disabled":
        return
    if template is not None and not knows_effort(template.sources.values()):
        warn(exchange, "thinking ignored: the model's chat template does not look at it")
    elif thinking.budget_tokens is not None:
        warn(exchange, "thinking.budget_tokens ignored: max_tokens bounds thinking and answer together")
