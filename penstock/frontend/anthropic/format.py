"""Text deltas as the events of a streamed message, and as the whole message: both are what ``BlockWriter`` makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET

from penstock.frontend.anthropic.answers import Message, MessageUsage, OutputTokens
from penstock.frontend.anthropic.blocks import BlockWriter
from penstock.frontend.anthropic.errors import encode_problem
from penstock.frontend.openai.answers import Usage
from penstock.frontend.openai.encode import encode_json
from penstock.frontend.openai.errors import HttpError
from penstock.frontend.openai.format import Head
from penstock.frontend.text.stream import TextDelta

_STOP_REASONS = {"stop": "end_turn", "tool_calls": "tool_use"}


@dataclass(slots=True, kw_only=True)
class MessageFormat:
    """``num_prompt`` counts the prompt's tokens. ``fills_context``: the request asked for more tokens than the context
    has room for, so that an answer that was cut off has filled it."""

    head: Head
    num_prompt: int
    include_thinking: bool
    fills_context: bool = False
    _blocks: BlockWriter = field(init=False)
    _begun: bool = False
    _stop_reason: str | None = None
    _stop_sequence: str | None = None

    def __post_init__(self) -> None:
        self._blocks = BlockWriter(include_thinking=self.include_thinking)

    def chunk(self, index: int, delta: TextDelta) -> bytes:
        begun = b""
        if not self._begun:
            self._begun = True
            usage = MessageUsage(input_tokens=self.num_prompt, output_tokens=0, output_tokens_details=OutputTokens())
            message = Message(id=self.head.id, model=self.head.model, content=[], usage=usage)
            begun = _event("message_start", message=message)
        self._read(delta)
        return begun + b"".join([_event(news.pop("type"), **news) for news in self._blocks.take_news()])

    def plain_frame(self, index: int) -> tuple[bytes, bytes] | None:
        """Chunks of text alone have a frame, but most answers have few of them: it is not worth a second way."""
        return None

    def last_events(self, usage: Usage) -> bytes:
        delta = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence}
        return _event("message_delta", delta=delta, usage=_usage(usage)) + _event("message_stop")

    def error_events(self, problem: HttpError) -> bytes:
        """The request failed after its stream had begun."""
        return b"event: error\ndata: " + encode_problem(problem, self.head.id) + b"\n\n"

    def answer(self, deltas: Mapping[int, TextDelta], usage: Usage) -> bytes:
        self._read(deltas[0])
        return encode_json(
            Message(
                id=self.head.id,
                model=self.head.model,
                content=self._blocks.blocks,
                usage=_usage(usage),
                stop_reason=self._stop_reason,
                stop_sequence=self._stop_sequence,
            )
        )

    def _read(self, delta: TextDelta) -> None:
        if delta.events is not None:
            self._blocks.add(delta.events)
        elif delta.text:
            self._blocks.add_text(delta.text)
        if delta.finish_reason is None:
            return
        self._blocks.close()
        if delta.finish_reason == "stop" and isinstance(delta.stop_reason, str):
            self._stop_reason, self._stop_sequence = "stop_sequence", delta.stop_reason
            return
        cut_off = "model_context_window_exceeded" if self.fills_context else "max_tokens"
        self._stop_reason = _STOP_REASONS.get(delta.finish_reason, cut_off)


def _usage(usage: Usage) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    details = usage.completion_tokens_details
    return MessageUsage(
        input_tokens=usage.prompt_tokens - cached,
        output_tokens=usage.completion_tokens,
        cache_read_input_tokens=cached,
        output_tokens_details=OutputTokens(thinking_tokens=details.reasoning_tokens if details is not UNSET else 0),
    )


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + encode_json({"type": kind, **fields}) + b"\n\n"
