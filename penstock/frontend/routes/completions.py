"""POST /v1/completions."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from penstock.errors import InvalidRequestError
from penstock.frontend.exchange import Exchange
from penstock.frontend.openai.format import CompletionFormat, Echo
from penstock.frontend.openai.requests import CompletionRequest
from penstock.frontend.openai.sampling import DEFAULT_COMPLETION_TOKENS, completion_sampling
from penstock.frontend.routes.generate import (
    check_total,
    make_head,
    make_shown,
    prepare,
    warn_of_ignored,
    write_generation,
)
from penstock.frontend.service import Service
from penstock.frontend.text.stream import TokenScore
from penstock.frontend.text.tokenizer import Tokenizer

_PREPARED_TOGETHER = 16
"""Prompts of a request that are checked before others have their turn: each takes up to a millisecond."""


async def post_completion(exchange: Exchange, service: Service, request: CompletionRequest) -> None:
    arrival = time.monotonic()
    model = service.model_name(request.model)
    warn_of_ignored(exchange, service, request)
    sampling = completion_sampling(request, service.assets.sampling_defaults, service.server.max_n)
    prompts = split_prompt(request.prompt)
    check_total(len(prompts), sampling.n, service.server.max_queue)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(await service.encode_all(texts, add_special_tokens=request.add_special_tokens is not False))
    prepared = []
    for number, prompt in enumerate(prompts):
        if number % _PREPARED_TOGETHER == _PREPARED_TOGETHER - 1:
            await asyncio.sleep(0)
        ids: Sequence[int] = next(encoded) if isinstance(prompt, str) else prompt
        chosen = sampling
        if sampling.max_tokens is None:
            room = service.client.info.max_model_len - len(ids)
            chosen = dataclasses.replace(sampling, max_tokens=max(1, min(DEFAULT_COMPLETION_TOKENS, room)))
        prepared.append(prepare(service, request, ids, chosen, arrival=arrival, param="prompt"))
    tokenizer = service.assets.tokenizer
    all_ids = [one.prompt_token_ids for one in prepared]
    echoes: Sequence[Echo] = ()
    if request.echo:
        pairs = list(zip(prompts, all_ids, strict=True))
        echoes = await service.compute(sum(map(len, all_ids)), lambda: [_echo(tokenizer, *pair) for pair in pairs])
    form = CompletionFormat(
        head=make_head(exchange, "cmpl-", model),
        shown=make_shown(request, logprobs=request.logprobs is not None, max_top=request.logprobs),
        n=sampling.n,
        echoes=echoes,
        prompts=all_ids,
    )
    await write_generation(exchange, service, prepared, form, stream=bool(request.stream))


def split_prompt(prompt: str | list[Any]) -> list[str | list[int]]:
    """The prompts of a request, each a text or a list of token ids. Raises InvalidRequestError."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError("prompt must not be an empty list.", param="prompt")
    if all(_is_token_id(item) for item in prompt):
        return [list(prompt)]
    if all(isinstance(item, str) or _is_token_list(item) for item in prompt):
        return list(prompt)
    raise InvalidRequestError(
        "prompt must be a text, a list of texts, a list of token ids, or a list of lists of token ids.", param="prompt"
    )


def _is_token_id(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31


def _is_token_list(item: Any) -> bool:
    return isinstance(item, list) and all(_is_token_id(one) for one in item)


def _echo(tokenizer: Tokenizer, prompt: str | list[int], ids: Sequence[int]) -> Echo:
    text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=False)
    data = tokenizer.token_bytes(ids[0])
    return Echo(text=text, first_token=TokenScore(ids[0], data.decode("utf-8", "replace"), data, 0.0))
