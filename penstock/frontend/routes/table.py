"""Every route as data: dispatch, authentication and the OpenAPI document all read this table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from penstock.frontend.anthropic import answers as message_answers
from penstock.frontend.anthropic import errors as message_errors
from penstock.frontend.anthropic import requests as message_requests
from penstock.frontend.exchange import ProblemEncoder
from penstock.frontend.openai import answers, errors, removed, requests
from penstock.frontend.responses import answers as response_answers
from penstock.frontend.responses import requests as response_requests
from penstock.frontend.routes import chat, completions, messages, models, page, responses, state, tokens

PUBLIC = "public"  # no key
KEYED = "keyed"  # needs a key when the server has keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """``handler`` is called with (exchange, service, body) when ``body`` is set, with (exchange, service) when not, and
    with (exchange, service or None, admission) when the route also answers before an engine is attached (``early``).
    ``{id}`` in a path matches every text that is not empty, slashes included. ``event`` is a record of streamed events,
    for routes that can stream. ``removed`` has the fields that are refused with an instruction.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[None]]
    summary: str
    access: str = KEYED
    early: bool = False
    generates: bool = False
    body: type[Struct] | None = None
    answer: Any = None  # a record, or None for a free JSON object
    event: type[Struct] | None = None
    removed: Mapping[str, str] = field(default_factory=dict, hash=False)
    encode_problem: ProblemEncoder = errors.encode_problem
    problem: type[Struct] = answers.ErrorAnswer
    media: str = "application/json"
    documented: bool = True


ROUTES: tuple[Route, ...] = (
    Route(
        method="POST", path="/v1/completions", handler=completions.post_completion, generates=True,
        body=requests.CompletionRequest, answer=answers.Completion, event=answers.Completion,
        removed=removed.COMPLETION_REMOVED, summary="Continue texts.",
    ),
    Route(
        method="POST", path="/v1/chat/completions", handler=chat.post_chat, generates=True,
        body=requests.ChatRequest, answer=answers.ChatCompletion, event=answers.ChatChunk,
        removed=removed.CHAT_REMOVED, summary="Answer a conversation.",
    ),
    Route(
        method="POST", path="/v1/responses", handler=responses.post_response, generates=True,
        body=response_requests.ResponsesRequest, answer=response_answers.Response,
        event=response_answers.ResponseEvent, removed=response_requests.REMOVED,
        summary="Answer a conversation, by OpenAI's Responses API.",
    ),
    Route(
        method="POST", path="/v1/responses/input_tokens", handler=responses.count_response_tokens,
        body=response_requests.ResponsesRequest, answer=response_answers.InputTokens,
        removed=response_requests.REMOVED, summary="Count the tokens of a response's prompt.",
    ),
    Route(
        method="GET", path="/v1/responses/{id}", handler=responses.show_response, answer=response_answers.Response,
        summary="Show a stored response.",
    ),
    Route(
        method="DELETE", path="/v1/responses/{id}", handler=responses.delete_response,
        answer=response_answers.DeletedResponse, summary="Forget a stored response.",
    ),
    Route(
        method="GET", path="/v1/responses/{id}/input_items", handler=responses.list_input_items,
        answer=response_answers.ItemList, summary="List the input of a stored response.",
    ),
    Route(
        method="POST", path="/v1/responses/{id}/cancel", handler=responses.cancel_response,
        summary="Always an error: responses are not made in the background.",
    ),
    Route(
        method="POST", path="/v1/messages", handler=messages.post_message, generates=True,
        body=message_requests.MessagesRequest, answer=message_answers.Message, event=message_answers.MessageEvent,
        removed=message_requests.REMOVED, encode_problem=message_errors.encode_problem,
        problem=message_answers.MessageError, summary="Answer a conversation, by Anthropic's Messages API.",
    ),
    Route(
        method="POST", path="/v1/messages/count_tokens", handler=messages.post_count_tokens,
        body=message_requests.CountTokensRequest, answer=message_answers.TokenCount,
        removed=message_requests.REMOVED, encode_problem=message_errors.encode_problem,
        problem=message_answers.MessageError, summary="Count the tokens of a message's prompt.",
    ),
    Route(
        method="GET", path="/v1/models", handler=models.list_models, answer=answers.ModelList,
        summary="List the names under which the model is served.",
    ),
    Route(
        method="GET", path="/v1/models/{id}", handler=models.show_model, answer=answers.ModelCard,
        summary="Show one served name.",
    ),
    Route(
        method="POST", path="/tokenize", handler=tokens.post_tokenize, body=requests.TokenizeRequest,
        answer=answers.TokenizeAnswer, summary="Token ids of a prompt or a conversation.",
    ),
    Route(
        method="POST", path="/detokenize", handler=tokens.post_detokenize, body=requests.DetokenizeRequest,
        answer=answers.DetokenizeAnswer, summary="Text of token ids.",
    ),
    Route(
        method="GET", path="/health", handler=state.show_health, access=PUBLIC, early=True,
        summary="200 while the engine is alive.",
    ),
    Route(
        method="GET", path="/ready", handler=state.show_ready, access=PUBLIC, early=True,
        summary="200 while requests are taken.",
    ),
    Route(
        method="GET", path="/version", handler=state.show_version, access=PUBLIC, early=True,
        summary="Version of the server.",
    ),
    Route(
        method="GET", path="/metrics", handler=state.show_metrics, media="text/plain",
        summary="Prometheus metrics, under vLLM's names.",
    ),
    Route(
        method="GET", path="/debug/decisions", handler=state.show_decisions,
        summary="Facts, settings and every decision with its reasons.",
    ),
    Route(method="GET", path="/debug/load", handler=state.show_load, summary="Live load, as the page shows it."),
    *(
        Route(
            method="GET", path=path, handler=page.show_page, access=PUBLIC, early=True, media=media.split(";")[0],
            summary="The page of this server.", documented=path == "/",
        )
        for path, (_, media) in page.FILES.items()
    ),
)  # fmt: skip
