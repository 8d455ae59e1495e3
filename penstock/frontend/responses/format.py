"""Text deltas as the events of a streamed response, and as the whole response: both are what ``ItemWriter`` makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET

from penstock.frontend.openai.answers import Usage
from penstock.frontend.openai.encode import encode_json
from penstock.frontend.openai.errors import HttpError
from penstock.frontend.openai.format import Head, Shown, token_logprob
from penstock.frontend.responses.answers import (
    COMPLETED,
    FAILED,
    INCOMPLETE,
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseUsage,
)
from penstock.frontend.responses.items import ItemWriter
from penstock.frontend.text.stream import TextDelta


def _keep_nothing(_: Response) -> None:
    """A response that is not stored."""


@dataclass(slots=True, kw_only=True)
class ResponseFormat:
    """``response`` is the response as it begins; it is filled in as the answer comes. ``keep`` gets it complete, before
    the client sees its end."""

    head: Head
    response: Response
    shown: Shown = field(default_factory=Shown)
    keep: Callable[[Response], None] = _keep_nothing
    _items: ItemWriter = field(init=False)
    _number: int = 0
    _finish: str | None = None

    def __post_init__(self) -> None:
        suffix = self.head.id.partition("_")[2]
        self._items = ItemWriter(lambda prefix, position: f"{prefix}_{suffix}{position:03d}")
        self.response.output = self._items.items

    def chunk(self, index: int, delta: TextDelta) -> bytes:
        begun = b""
        if self._number == 0:
            begun = self._event("response.created", response=self.response)
            begun += self._event("response.in_progress", response=self.response)
        self._read(delta)
        return begun + self._news()

    def plain_frame(self, index: int) -> tuple[bytes, bytes] | None:
        """Every event has a number of its own: there is no fixed frame."""
        return None

    def last_events(self, usage: Usage) -> bytes:
        self._complete(usage)
        return self._event(f"response.{self.response.status}", response=self.response)

    def error_events(self, problem: HttpError) -> bytes:
        """The response failed after its stream had begun. It is not kept."""
        code = "rate_limit_exceeded" if problem.status == 429 else "server_error"
        self.response.status = FAILED
        self.response.error = ResponseError(code=code, message=problem.message)
        return self._event("response.failed", response=self.response)

    def answer(self, deltas: Mapping[int, TextDelta], usage: Usage) -> bytes:
        self._read(deltas[0])
        self._items.take_news()
        self._complete(usage)
        return encode_json(self.response)

    def _read(self, delta: TextDelta) -> None:
        items = self._items
        if delta.events is not None:
            items.add(delta.events)
        elif delta.text or delta.scores:
            items.add_text(
                delta.text, [token_logprob(one, self.shown) for one in delta.scores] if self.shown.logprobs else []
            )
        if delta.finish_reason is not None:
            self._finish = delta.finish_reason
            items.close(complete=self._is_complete)

    @property
    def _is_complete(self) -> bool:
        return self._finish in ("stop", "tool_calls")

    def _complete(self, usage: Usage) -> None:
        response = self.response
        response.status = COMPLETED if self._is_complete else INCOMPLETE
        if self._is_complete:
            response.completed_at = int(time.time())
        else:
            response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
        details, cached = usage.completion_tokens_details, usage.prompt_tokens_details
        response.usage = ResponseUsage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached.cached_tokens if cached else 0),
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=details.reasoning_tokens if details is not UNSET else 0
            ),
        )
        self.keep(response)

    def _news(self) -> bytes:
        return b"".join([self._event(news.pop("type"), **news) for news in self._items.take_news()])

    def _event(self, kind: str, **fields: Any) -> bytes:
        body = encode_json({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"
