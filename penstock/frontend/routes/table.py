"""Every route as data: dispatch, authentication and the OpenAPI document all read this table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from penstock.frontend.openai import answers, requests
from penstock.frontend.routes import chat, completions, models, page, state, tokens

PUBLIC = "public"  # no key
KEYED = "keyed"  # needs a key when the server has keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """``handler`` is called with (exchange, service, body) when ``body`` is set, with (exchange, service) when not, and
    with (exchange, service or None, admission) when the route also answers before an engine is attached (``early``).
    A path that ends in ``{id}`` matches every non-empty rest, slashes included.
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
    media: str = "application/json"
    documented: bool = True


ROUTES: tuple[Route, ...] = (
    Route(
        method="POST", path="/v1/completions", handler=completions.post_completion, generates=True,
        body=requests.CompletionRequest, answer=answers.Completion, summary="Continue texts.",
    ),
    Route(
        method="POST", path="/v1/chat/completions", handler=chat.post_chat, generates=True,
        body=requests.ChatRequest, answer=answers.ChatCompletion, summary="Answer a conversation.",
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
