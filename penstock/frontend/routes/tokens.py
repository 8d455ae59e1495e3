"""POST /tokenize and /detokenize."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.tools import read_tool_use
from penstock.frontend.exchange import Exchange
from penstock.frontend.openai.answers import DetokenizeAnswer, TokenizeAnswer
from penstock.frontend.openai.encode import encode_json
from penstock.frontend.openai.requests import DetokenizeRequest, TokenizeRequest
from penstock.frontend.routes.chat import render_chat
from penstock.frontend.service import Service

_ID_BYTES = 64
"""Memory for a token that is answered, counted from above: its id, twice in a list, and as JSON."""
_TEXT_BYTES = 32
"""The same for its text: one object for all tokens of an id, and JSON."""


async def post_tokenize(exchange: Exchange, service: Service, request: TokenizeRequest) -> None:
    service.model_name(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequestError("Give either prompt or messages.", param="prompt")
    if request.messages is None:
        assert request.prompt is not None
        text, special = request.prompt, request.add_special_tokens is not False
    else:
        render = partial(
            render_chat,
            service,
            request.messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            chat_template_kwargs=request.chat_template_kwargs,
            tools=read_tool_use(request.tools, None, None).shown,
        )
        text = await service.render(len(request.messages), render)
        special = bool(request.add_special_tokens)
    ids = await service.encode(text, add_special_tokens=special)
    exchange.require(len(ids) * (_ID_BYTES + (_TEXT_BYTES if request.return_token_strs else 0)))
    body = await service.compute(len(ids), partial(_tokenized, service, ids, bool(request.return_token_strs)))
    await exchange.answer(200, body)


def _tokenized(service: Service, ids: Sequence[int], with_texts: bool) -> bytes:
    texts = {token_id: service.assets.tokenizer.token_text(token_id) for token_id in set(ids)} if with_texts else {}
    answer = TokenizeAnswer(
        count=len(ids),
        max_model_len=service.client.info.max_model_len,
        tokens=list(ids),
        token_strs=[texts[token_id] for token_id in ids] if with_texts else None,
    )
    return encode_json(answer)


async def post_detokenize(exchange: Exchange, service: Service, request: DetokenizeRequest) -> None:
    service.model_name(request.model)
    tokenizer = service.assets.tokenizer
    limit = max(tokenizer.vocab_size, service.client.info.model.vocab_size)
    largest = max(request.tokens, default=0)
    if largest >= limit:
        raise InvalidRequestError(
            f"tokens contains id {largest}, but this model has ids 0 to {limit - 1}.", param="tokens"
        )

    def detokenized() -> bytes:
        text = tokenizer.decode(request.tokens, skip_special_tokens=bool(request.skip_special_tokens))
        return encode_json(DetokenizeAnswer(prompt=text))

    body = await service.compute(len(request.tokens), detokenized)
    exchange.require(len(body))
    await exchange.answer(200, body)
