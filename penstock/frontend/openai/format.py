"""How text deltas become chunks and answers: one small format object per HTTP request.

A chunk's choice and an answer's choice are made from the same TextDelta by the same functions; an answer is the fold
of the deltas that its stream would have sent. Pure; knows no socket and no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import UNSET, Struct

from penstock.frontend.openai.answers import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptLogprobs,
    TopLogprob,
    Usage,
)
from penstock.frontend.openai.encode import encode_json
from penstock.frontend.openai.errors import HttpError
from penstock.frontend.openai.reading import events_delta, events_message
from penstock.frontend.text.stream import PositionScores, TextDelta, TokenScore

DONE = b"data: [DONE]\n\n"
_NO_NEWS = ChatDelta()
_MARK = "@text@"  # stands for a text in a choice that has no other


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a request wants to see besides text."""

    logprobs: bool = False
    max_top: int | None = None  # most alternatives shown per position; None shows all that the engine gave
    tokens_as_ids: bool = False
    token_ids: bool = False
    prompt_logprobs: bool = False
    usage_in_chunks: bool = False  # each chunk carries "usage": null, because the last one has it

    @property
    def only_text(self) -> bool:
        """Chunks have nothing that depends on single tokens."""
        return not (self.logprobs or self.token_ids or self.prompt_logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The fields that all chunks of an answer share."""

    id: str
    created: int
    model: str


class Format(Protocol):
    def chunk(self, index: int, delta: TextDelta) -> bytes:
        """Complete server-sent events; empty when the news say nothing that the protocol has an event for."""

    def plain_frame(self, index: int) -> tuple[bytes, bytes] | None:
        """What stands before and after the escaped text of a chunk that has text and nothing else to say; None when
        the next chunk of this choice says more, or all of them do. Never used for a choice that a dialect reads."""

    def last_events(self, usage: Usage) -> bytes:
        """What ends a stream whose chunks have all been made."""

    def error_events(self, problem: HttpError) -> bytes:
        """What ends a stream that fails after it began."""

    def answer(self, deltas: Mapping[int, TextDelta], usage: Usage) -> bytes:
        """The JSON body; ``deltas`` has the fold of every choice."""


def _event_frame(head: Head, kind: str, usage: bool) -> tuple[bytes, bytes]:
    fixed = encode_json({"id": head.id, "object": kind, "created": head.created, "model": head.model})
    return b"data: " + fixed[:-1] + b',"choices":[', b'],"usage":null}\n\n' if usage else b"]}\n\n"


def _split_frame(frame: tuple[bytes, bytes], choice: Struct) -> tuple[bytes, bytes]:
    """An event as the bytes around the text of its choice, where ``choice`` has the mark."""
    before, after = encode_json(choice).split(_MARK.encode())
    return frame[0] + before, after + frame[1]


def _usage_event(head: Head, kind: str, usage: Usage) -> bytes:
    body = {
        "id": head.id, "object": kind, "created": head.created, "model": head.model, "choices": [], "usage": usage,
    }  # fmt: skip
    return b"data: " + encode_json(body) + b"\n\n"


def token_name(score: TokenScore, shown: Shown) -> str:
    return f"token_id:{score.token_id}" if shown.tokens_as_ids else score.text


def token_logprob(position: PositionScores, shown: Shown) -> ChatLogprob:
    chosen = position.chosen
    return ChatLogprob(
        token=token_name(chosen, shown),
        logprob=chosen.logprob,
        bytes=list(chosen.data),
        top_logprobs=[
            TopLogprob(token=token_name(top, shown), logprob=top.logprob, bytes=list(top.data))
            for top in position.top[: shown.max_top]
        ],
    )


def prompt_logprobs(scores: Sequence[PositionScores], with_first: bool) -> PromptLogprobs:
    """vLLM's form: None for the first prompt token, then every scored token by its id."""
    entries: PromptLogprobs = [None] if with_first else []
    for position in scores:
        entry = {
            str(top.token_id): {"logprob": top.logprob, "rank": rank, "decoded_token": top.text}
            for rank, top in enumerate(position.top, 1)
        }
        chosen = position.chosen
        entry[str(chosen.token_id)] = {
            "logprob": chosen.logprob, "rank": position.rank, "decoded_token": chosen.text,
        }  # fmt: skip
        entries.append(entry)
    return entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """The prompt that is put before the output: its text, and its first token, which no logprob describes."""

    text: str
    first_token: TokenScore


@dataclass(slots=True, kw_only=True)
class CompletionFormat:
    """Chunks and answer of /v1/completions. ``echoes`` has one entry per prompt, or is empty."""

    head: Head
    shown: Shown = Shown()
    n: int = 1
    echoes: Sequence[Echo] = ()
    prompts: Sequence[Sequence[int]] = ()
    _begun: set[int] = field(default_factory=set)
    _frame: tuple[bytes, bytes] = (b"", b"")

    KIND = "text_completion"

    def __post_init__(self) -> None:
        self._frame = _event_frame(self.head, self.KIND, self.shown.usage_in_chunks)

    def chunk(self, index: int, delta: TextDelta) -> bytes:
        first = index not in self._begun
        self._begun.add(index)
        return self._frame[0] + encode_json(self.choice(index, delta, first)) + self._frame[1]

    def plain_frame(self, index: int) -> tuple[bytes, bytes] | None:
        if not self.shown.only_text or index not in self._begun:
            return None
        return _split_frame(self._frame, CompletionChoice(index=index, text=_MARK))

    def last_events(self, usage: Usage) -> bytes:
        return (_usage_event(self.head, self.KIND, usage) if self.shown.usage_in_chunks else b"") + DONE

    def error_events(self, problem: HttpError) -> bytes:
        return b"data: " + problem.encode() + b"\n\n"

    def answer(self, deltas: Mapping[int, TextDelta], usage: Usage) -> bytes:
        choices = [self.choice(index, delta, True) for index, delta in sorted(deltas.items())]
        head = self.head
        return encode_json(
            Completion(
                id=head.id, object=self.KIND, created=head.created, model=head.model, choices=choices, usage=usage
            )
        )

    def choice(self, index: int, delta: TextDelta, first: bool) -> CompletionChoice:
        """``first`` deltas of a choice carry the echo."""
        shown, prompt = self.shown, index // self.n
        echo = self.echoes[prompt] if self.echoes else None
        choice = CompletionChoice(
            index=index,
            text=echo.text + delta.text if echo is not None and first else delta.text,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )
        if shown.logprobs:
            choice.logprobs = self._logprobs(delta, echo, first)
        if shown.prompt_logprobs:
            wanted = first or delta.prompt_scores
            choice.prompt_logprobs = prompt_logprobs(delta.prompt_scores, first) if wanted else UNSET
        if shown.token_ids:
            choice.token_ids = list(delta.token_ids)
            if first:
                choice.prompt_token_ids = list(self.prompts[prompt])
        return choice

    def _logprobs(self, delta: TextDelta, echo: Echo | None, first: bool) -> CompletionLogprobs:
        columns = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        if echo is not None:
            if first:
                columns.text_offset.append(0)
                columns.token_logprobs.append(None)
                columns.tokens.append(token_name(echo.first_token, self.shown))
                columns.top_logprobs.append(None)
            self._add_columns(columns, delta.prompt_scores, 0)
        self._add_columns(columns, delta.scores, len(echo.text) if echo is not None else 0)
        return columns

    def _add_columns(self, columns: CompletionLogprobs, scores: Sequence[PositionScores], shift: int) -> None:
        for position in scores:
            top = {token_name(score, self.shown): score.logprob for score in position.top[: self.shown.max_top]}
            top[token_name(position.chosen, self.shown)] = position.chosen.logprob
            columns.text_offset.append(shift + position.text_offset)
            columns.token_logprobs.append(position.chosen.logprob)
            columns.tokens.append(token_name(position.chosen, self.shown))
            columns.top_logprobs.append(top)


@dataclass(slots=True, kw_only=True)
class ChatFormat:
    """Chunks and answer of /v1/chat/completions."""

    head: Head
    shown: Shown = Shown()
    role: str = "assistant"
    prompts: Sequence[Sequence[int]] = ()
    include_reasoning: bool = True
    _begun: set[int] = field(default_factory=set)
    _scored: set[int] = field(default_factory=set)  # choices whose prompt has been scored, from its first token on
    _frame: tuple[bytes, bytes] = (b"", b"")

    CHUNK_KIND = "chat.completion.chunk"
    KIND = "chat.completion"

    def __post_init__(self) -> None:
        self._frame = _event_frame(self.head, self.CHUNK_KIND, self.shown.usage_in_chunks)

    def chunk(self, index: int, delta: TextDelta) -> bytes:
        events = b""
        if index not in self._begun:
            self._begun.add(index)
            opening = ChatChunkChoice(index=index, delta=ChatDelta(role=self.role, content=""))
            if self.shown.token_ids:
                opening.prompt_token_ids = list(self.prompts[0])
            events = self._event(opening)
        choice = self.chunk_choice(index, delta)
        # A dialect withholds text until it knows what the text means: such news are told by what comes later.
        return (
            events
            if delta.events is not None and choice == ChatChunkChoice(index=index, delta=_NO_NEWS)
            else (events + self._event(choice))
        )

    def _event(self, choice: ChatChunkChoice) -> bytes:
        return self._frame[0] + encode_json(choice) + self._frame[1]

    def chunk_choice(self, index: int, delta: TextDelta) -> ChatChunkChoice:
        shown = self.shown
        choice = ChatChunkChoice(
            index=index,
            delta=self._delta(delta),
            finish_reason=delta.finish_reason,
        )
        if delta.finish_reason is not None:
            choice.stop_reason = delta.stop_reason
        if shown.logprobs and delta.scores:
            choice.logprobs = self._logprobs(delta)
        if shown.prompt_logprobs:
            first = index not in self._scored
            if delta.prompt_scores or (first and delta.finish_reason is not None):  # one token has no scores
                choice.prompt_logprobs = prompt_logprobs(delta.prompt_scores, first)
                self._scored.add(index)
        if shown.token_ids:
            choice.token_ids = list(delta.token_ids)
        return choice

    def plain_frame(self, index: int) -> tuple[bytes, bytes] | None:
        if not self.shown.only_text or index not in self._begun:
            return None
        return _split_frame(self._frame, self.chunk_choice(index, TextDelta(_MARK)))

    def last_events(self, usage: Usage) -> bytes:
        return (_usage_event(self.head, self.CHUNK_KIND, usage) if self.shown.usage_in_chunks else b"") + DONE

    def error_events(self, problem: HttpError) -> bytes:
        return b"data: " + problem.encode() + b"\n\n"

    def answer(self, deltas: Mapping[int, TextDelta], usage: Usage) -> bytes:
        choices = [self.answer_choice(index, delta) for index, delta in sorted(deltas.items())]
        head, shown = self.head, self.shown
        scores = deltas[0].prompt_scores if shown.prompt_logprobs else ()
        return encode_json(
            ChatCompletion(
                id=head.id,
                object=self.KIND,
                created=head.created,
                model=head.model,
                choices=choices,
                usage=usage,
                prompt_logprobs=prompt_logprobs(scores, True) if shown.prompt_logprobs else UNSET,
            )
        )

    def answer_choice(self, index: int, delta: TextDelta) -> ChatChoice:
        choice = ChatChoice(
            index=index,
            message=self._message(delta),
            logprobs=self._logprobs(delta) if self.shown.logprobs else None,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )
        if self.shown.token_ids:
            choice.token_ids = list(delta.token_ids)
            choice.prompt_token_ids = list(self.prompts[0])
        return choice

    def _delta(self, delta: TextDelta) -> ChatDelta:
        if delta.events is not None:
            return events_delta(delta.events, self.include_reasoning)
        return ChatDelta(content=delta.text) if delta.text or delta.finish_reason is None else ChatDelta()

    def _message(self, delta: TextDelta) -> ChatMessage:
        if delta.events is not None:
            return events_message(self.role, delta.events, self.include_reasoning)
        return ChatMessage(role=self.role, content=delta.text)

    def _logprobs(self, delta: TextDelta) -> ChatLogprobs:
        return ChatLogprobs(content=[token_logprob(position, self.shown) for position in delta.scores])
