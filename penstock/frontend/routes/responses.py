"""/v1/responses: OpenAI's Responses API."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.naming import renamed
from penstock.frontend.exchange import Exchange
from penstock.frontend.openai.decode import decoded_bytes
from penstock.frontend.openai.encode import encode_json
from penstock.frontend.openai.errors import HttpError
from penstock.frontend.openai.format import Head, Shown
from penstock.frontend.responses.answers import IN_PROGRESS, DeletedResponse, InputTokens, ItemList, Response
from penstock.frontend.responses.conversation import chat_messages, input_items, listed_item
from penstock.frontend.responses.format import ResponseFormat
from penstock.frontend.responses.requests import (
    CHAT_NAMES,
    ENCRYPTED,
    LOGPROBS,
    ResponsesRequest,
    chat_request,
    refuse_unsupported,
)
from penstock.frontend.responses.store import BrokenChainError, ResponseStore, StoredResponse
from penstock.frontend.routes.chat import count_prompt, prepare_chat
from penstock.frontend.routes.generate import make_head, warn, write_generation
from penstock.frontend.service import Service
from penstock.types.request import SamplingParams

PATH = "/v1/responses/"
CANCEL = "/cancel"
INPUT_ITEMS = "/input_items"
_MAX_LISTED = 100


async def post_response(exchange: Exchange, service: Service, request: ResponsesRequest) -> None:
    arrival = time.monotonic()
    model = service.model_name(request.model)
    refuse_unsupported(request)
    store = _store_for(service, request)
    _warn_of_ignored(exchange, request)
    messages = await _messages(exchange, service, request)
    with renamed(CHAT_NAMES):
        prepared = await prepare_chat(exchange, service, chat_request(request, messages), arrival=arrival)
    logprobs = LOGPROBS in (request.include or ())
    if logprobs and prepared.reading is not None:
        raise InvalidRequestError(
            f"include must not hold {LOGPROBS} where the answer may have reasoning or calls: tokens and texts do not "
            "match there. Use /v1/chat/completions, which answers with the logprobs of all tokens.",
            param="include",
        )
    head = make_head(exchange, "resp_", model)
    response = _begin(head, request, prepared.sampling, store is not None)
    items = _encoded(response, request)
    form = ResponseFormat(
        head=head, shown=Shown(logprobs=logprobs, max_top=request.top_logprobs or 0), response=response
    )
    if store is not None:
        form.keep = _keeper(store, items, request.previous_response_id, exchange.owner)
    await write_generation(exchange, service, [prepared], form, stream=bool(request.stream))


async def count_response_tokens(exchange: Exchange, service: Service, request: ResponsesRequest) -> None:
    """The prompt that a request would have, counted."""
    service.model_name(request.model)
    refuse_unsupported(request)
    messages = await _messages(exchange, service, request)
    with renamed(CHAT_NAMES):
        num_tokens = await count_prompt(exchange, service, chat_request(request, messages))
    await exchange.answer(200, encode_json(InputTokens(input_tokens=num_tokens)))


async def show_response(exchange: Exchange, service: Service) -> None:
    stored = _stored(exchange, service, exchange.path.removeprefix(PATH))
    if exchange.query.get("stream") == "true":
        raise InvalidRequestError(
            "stream must be false: only the response is stored, not the events that told of it.", param="stream"
        )
    await exchange.answer(200, stored.body)


async def delete_response(exchange: Exchange, service: Service) -> None:
    stored = _stored(exchange, service, exchange.path.removeprefix(PATH))
    service.responses.delete(stored.id, exchange.owner)
    await exchange.answer(200, encode_json(DeletedResponse(id=stored.id)))


async def list_input_items(exchange: Exchange, service: Service) -> None:
    """Items of the request itself, not of those before it. ``order``, ``after`` and ``limit`` as in the API."""
    stored = _stored(exchange, service, exchange.path.removeprefix(PATH).removesuffix(INPUT_ITEMS))
    exchange.require(decoded_bytes(stored.input))
    await exchange.answer(200, await service.compute(len(stored.input), lambda: _listed(stored, exchange.query)))


def _listed(stored: StoredResponse, query: Mapping[str, str]) -> bytes:
    items = [{"id": f"item_{stored.id}_{row}", **listed_item(item)} for row, item in enumerate(_decoded_input(stored))]
    if query.get("order", "desc") != "asc":
        items.reverse()
    ids = [str(item["id"]) for item in items]
    after, limit = query.get("after"), query.get("limit", "20")
    if after is not None and after not in ids:
        raise InvalidRequestError(f"after must be the id of an item, got {after[:64]!r}.", param="after")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= _MAX_LISTED):
        raise InvalidRequestError(f"limit must be 1 to {_MAX_LISTED}, got {limit[:64]!r}.", param="limit")
    rest = items[ids.index(after) + 1 :] if after is not None else items
    page = rest[: int(limit)]
    listed = ItemList(
        data=page,
        first_id=str(page[0]["id"]) if page else "",
        last_id=str(page[-1]["id"]) if page else "",
        has_more=len(rest) > len(page),
    )
    return encode_json(listed)


async def cancel_response(exchange: Exchange, service: Service) -> None:
    """Nothing runs in the background: whoever wants less of an answer closes its connection."""
    stored = _stored(exchange, service, exchange.path.removeprefix(PATH).removesuffix(CANCEL))
    raise HttpError(
        400,
        f"The response {stored.id} cannot be cancelled: only those of the background can, and there are none here. "
        "Close the connection of a request to end it.",
        code="not_cancellable",
    )


async def _messages(exchange: Exchange, service: Service, request: ResponsesRequest) -> list[dict[str, Any]]:
    """The conversation, with what is stored of it."""
    chain = _earlier(service, request.previous_response_id, exchange.owner)
    exchange.require(sum(decoded_bytes(stored.input) + decoded_bytes(stored.body) for stored in chain))

    def messages() -> list[dict[str, Any]]:
        return chat_messages(_items(chain), input_items(request.input), request.instructions)

    return await service.compute(sum(stored.nbytes for stored in chain), messages)


def _warn_of_ignored(exchange: Exchange, request: ResponsesRequest) -> None:
    if ENCRYPTED in (request.include or ()):
        warn(exchange, f"{ENCRYPTED} ignored: reasoning is not encrypted, its items have all of it")
    if request.reasoning is not None and (request.reasoning.summary or request.reasoning.generate_summary):
        warn(exchange, "reasoning.summary ignored: reasoning comes back whole")
    if request.text is not None and request.text.verbosity not in (None, "medium"):
        warn(exchange, "text.verbosity ignored: say in the instructions how long answers shall be")


def _begin(head: Head, request: ResponsesRequest, sampling: SamplingParams, stored: bool) -> Response:
    """The response before anything has come."""
    form = request.text.format if request.text is not None else None
    reasoning = request.reasoning
    return Response(
        id=head.id,
        created_at=head.created,
        model=head.model,
        status=IN_PROGRESS,
        output=[],
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning={"effort": reasoning.effort if reasoning is not None else None, "summary": None},
        safety_identifier=request.safety_identifier,
        store=stored,
        temperature=sampling.temperature,
        text={"format": _without_nulls(form) if form is not None else {"type": "text"}},
        tool_choice="auto" if request.tool_choice is None else request.tool_choice,
        tools=request.tools or [],
        top_logprobs=request.top_logprobs or 0,
        top_p=sampling.top_p,
        user=request.user,
    )


def _encoded(response: Response, request: ResponsesRequest) -> bytes:
    """The input as JSON. What could be read but cannot be written inside an event (it is nested too deeply) is refused
    before anything is spent on it."""
    try:
        encode_json([[[response]]])
        return encode_json(input_items(request.input))
    except RecursionError:
        raise InvalidRequestError("The body is JSON nested too deeply.", code="invalid_json") from None


def _without_nulls(record: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(record).items() if value is not None}


# -- what is stored ------------------------------------------------------------------------------------------------


def _refusal(service: Service) -> str:
    """Why this server stores no responses; empty when it does."""
    if service.peers is not None:
        return "several frontend processes answer here (--frontends), and none of them sees what another has stored"
    return "" if service.responses.max_responses else "it was started with --max-stored-responses 0"


def _store_for(service: Service, request: ResponsesRequest) -> ResponseStore | None:
    """Where the response goes; None: nowhere. By the API it is stored unless the request says otherwise."""
    refusal = _refusal(service)
    if refusal and request.store:
        raise InvalidRequestError(
            f"store must be false: this server stores no responses, because {refusal}.", param="store"
        )
    return None if refusal or request.store is False else service.responses


def _earlier(service: Service, response_id: str | None, owner: bytes) -> list[StoredResponse]:
    """A response and all before it."""
    if response_id is None:
        return []
    param = "previous_response_id"
    if refusal := _refusal(service):
        raise InvalidRequestError(
            f"{param} cannot be used: this server stores no responses, because {refusal}. Send the whole conversation "
            "in input.",
            param=param,
        )
    try:
        return service.responses.chain(response_id, owner)
    except BrokenChainError as error:
        missing = error.missing_id[:200]
        before = "" if error.missing_id == response_id else f", which {response_id[:200]!r} goes on from,"
        raise HttpError(
            404,
            f"{param}: the response {missing!r}{before} is not stored (any more), or not for your key. Send the whole "
            "conversation in input.",
            param=param,
            code="previous_response_not_found",
        ) from None


class _Output(msgspec.Struct):
    """What is read of a stored response; decoding skips the rest."""

    output: list[dict[str, Any]]


def _items(chain: Sequence[StoredResponse]) -> list[Mapping[str, Any]]:
    """Input and output of each."""
    items: list[Mapping[str, Any]] = []
    for stored in chain:
        items += _decoded_input(stored)
        items += msgspec.json.decode(stored.body, type=_Output).output
    return items


def _decoded_input(stored: StoredResponse) -> list[dict[str, Any]]:
    try:
        items: list[dict[str, Any]] = msgspec.json.decode(stored.input)
    except RecursionError:
        raise InvalidRequestError("The stored input is JSON nested too deeply.", code="invalid_json") from None
    return items


def _keeper(store: ResponseStore, items: bytes, previous_id: str | None, owner: bytes) -> Callable[[Response], None]:
    def keep(response: Response) -> None:
        store.add(
            StoredResponse(
                id=response.id,
                body=encode_json(response),
                input=items,
                previous_id=previous_id,
                owner=owner,
            )
        )

    return keep


def _stored(exchange: Exchange, service: Service, response_id: str) -> StoredResponse:
    if refusal := _refusal(service):
        raise HttpError(404, f"This server stores no responses, because {refusal}.", code="responses_not_stored")
    stored = service.responses.get(response_id, exchange.owner)
    if stored is None:
        raise HttpError(
            404,
            f"The response {response_id[:200]!r} is not stored here (any more), or not for your key.",
            code="response_not_found",
        )
    return stored
