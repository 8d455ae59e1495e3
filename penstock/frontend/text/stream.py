"""TextStream: one request's token updates become text deltas; the full answer is a fold over them.

The only place where tokens, stop strings and logprobs of a request meet. Knows no HTTP format and never blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.frontend.dialects.events import Event, ReasoningText, merged
from penstock.frontend.text.detokenizer import Detokenizer, escape, piece_table
from penstock.frontend.text.stops import StopFinder
from penstock.frontend.text.tokenizer import Tokenizer
from penstock.types.output import FinishReason, Terminal, TokenUpdate
from penstock.types.request import SamplingParams
from penstock.types.result import TokenLogprobs

FINISH_TEXT = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
    FinishReason.ERROR: "error",
}


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token as it is shown: ``data`` are its exact bytes, ``text`` the same with U+FFFD where they are not UTF-8."""

    token_id: int
    text: str
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionScores:
    """One position: the token that is there, its 1-based rank, and the most likely ones in falling order.

    ``text_offset`` counts characters from the start of the output (of the prompt, for prompt positions) to the
    token; it includes characters that are withheld at this moment.
    """

    chosen: TokenScore
    rank: int
    top: tuple[TokenScore, ...]
    text_offset: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """News of one request. ``finish_reason`` is set exactly once per stream: "stop", "length", "abort" or "error".

    ``scores`` is empty or has one entry per token id. ``stop_reason`` is the stop string that matched, or the id of a
    stop token that is not the model's own end of sequence. When ``abort`` is set the text is complete but the engine
    is not: the caller must abort the engine's request, and may close the answer at once. ``failure`` is set with
    "error". ``events`` say what the text means, where somebody reads it (``answer_stream``); None: it is content.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    scores: tuple[PositionScores, ...] = ()
    prompt_scores: tuple[PositionScores, ...] = ()
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    abort: bool = False
    failure: Terminal | None = None
    events: tuple[Event, ...] | None = None

    @property
    def reasoning(self) -> str:
        """What the model wrote for itself, where somebody reads it."""
        return "".join(event.text for event in self.events or () if isinstance(event, ReasoningText))

    @property
    def is_empty(self) -> bool:
        """Nothing that a client would want to hear."""
        return not (self.text or self.token_ids or self.prompt_scores or self.finish_reason)


class TextStream:
    """Feed it every TokenUpdate and the Terminal of one request, in order. Not thread-safe.

    ``prompt_token_ids`` tell whether the output continues visible text; ``eos_token_ids`` are the model's own stop
    ids, which are no ``stop_reason``; ``visible_token_ids`` are special tokens that are never skipped.
    The token that ends a request adds no text, unless
    ``include_stop_str_in_output``. Stop strings are looked for from token ``min_tokens`` on.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        prompt_token_ids: Sequence[int] = (),
        eos_token_ids: frozenset[int] = frozenset(),
        visible_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        hidden = piece_table(tokenizer, sampling.skip_special_tokens, visible_token_ids).skipped
        at_start = hidden.issuperset(prompt_token_ids)
        self._tokenizer = tokenizer
        self._bytes_of = piece_table(tokenizer, False).bytes_of
        self._detokenizer = Detokenizer(
            tokenizer, sampling.skip_special_tokens, at_start=at_start, visible=visible_token_ids
        )
        self._finder = StopFinder(sampling.stop, sampling.include_stop_str_in_output)
        self._include_stop = sampling.include_stop_str_in_output
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._eos_ids = eos_token_ids
        self._search_from = max(sampling.min_tokens, 1)
        self._prompt_token_ids = prompt_token_ids
        self._held_stop_id: int | None = None  # a stop token that may turn out to be the last one
        self._prompt_offset = 0
        self._prompt_detokenizer: Detokenizer | None = None
        self._num_decoded = 0  # characters decoded so far, withheld ones included
        self.num_output_tokens = 0
        self.finish_reason: str | None = None

    def on_update(self, update: TokenUpdate) -> TextDelta:
        """Text that is certain after these tokens. Empty after the stream has finished."""
        if self.finish_reason is not None:
            return TextDelta()
        ids = update.token_ids
        if update.logprobs or self._finder.is_active:
            text, num_taken, scores = self._take_singly(ids, update.logprobs)
        else:
            text, num_taken, scores = self._take_batch(ids), len(ids), ()
        prompt_scores = self._score_prompt(update.prompt_logprobs) if update.prompt_logprobs else ()
        if self._finder.matched is None:
            return TextDelta(text, ids, scores, prompt_scores)
        self.finish_reason = "stop"
        return TextDelta(text, ids[:num_taken], scores, prompt_scores, "stop", self._finder.matched, abort=True)

    @property
    def is_plain(self) -> bool:
        """Whether ``push_plain`` may be used: nothing depends on single tokens."""
        return not self._finder.is_active

    def push_plain(self, ids: Sequence[int]) -> bytes:
        """``on_update`` for tokens that come with nothing else, when only the text is wanted: as UTF-8, escaped for a
        JSON string. Only while ``is_plain`` and before the end."""
        if self._held_stop_id is None and ids[-1] not in self._stop_ids:
            self.num_output_tokens += len(ids)
            return self._detokenizer.push_escaped(ids)
        return escape(self._take_batch(ids))

    def on_terminal(self, terminal: Terminal) -> TextDelta:
        """The rest of the text and the finish reason; empty when a stop string has already ended the stream."""
        if self.finish_reason is not None:
            return TextDelta()
        stopped = terminal.reason is FinishReason.STOP
        text = ""
        if self._held_stop_id is not None and (self._include_stop or not stopped):
            text = self._detokenizer.push((self._held_stop_id,))
        self._held_stop_id = None
        text, matched = self._finder.push(text + self._detokenizer.flush())
        text += self._finder.flush()
        self.finish_reason = "stop" if matched is not None else FINISH_TEXT[terminal.reason]
        stop_reason: str | int | None = matched
        if matched is None and stopped and terminal.stop_token_id not in self._eos_ids:
            stop_reason = terminal.stop_token_id
        failed = self.finish_reason == "error"
        return TextDelta(
            text, finish_reason=self.finish_reason, stop_reason=stop_reason, failure=terminal if failed else None
        )

    def _take_batch(self, ids: Sequence[int]) -> str:
        """Tokens without scores and stop strings: one decode for all of them."""
        self.num_output_tokens += len(ids)
        if self._held_stop_id is not None and ids:
            ids = (self._held_stop_id, *ids)
            self._held_stop_id = None
        if ids and ids[-1] in self._stop_ids:
            self._held_stop_id = ids[-1]
            ids = ids[:-1]
        text = self._detokenizer.push(ids)
        self._num_decoded += len(text)
        return text

    def _take_singly(
        self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> tuple[str, int, tuple[PositionScores, ...]]:
        """Token by token, so that offsets are known and nothing after a completed stop string is taken."""
        emitted: list[str] = []
        scores: list[PositionScores] = []
        for position, token_id in enumerate(ids):
            if logprobs:
                scores.append(self._score(logprobs[position], self._num_decoded))
            decoded = self._take_batch((token_id,))
            if self.num_output_tokens < self._search_from:
                emitted.append(decoded)
                continue
            text, matched = self._finder.push(decoded)
            emitted.append(text)
            if matched is not None:
                return "".join(emitted), position + 1, tuple(scores)
        return "".join(emitted), len(ids), tuple(scores)

    def _score(self, logprobs: TokenLogprobs, offset: int) -> PositionScores:
        shown = [
            TokenScore(token_id, data.decode("utf-8", "replace"), data, logprob)
            for token_id, logprob in zip(logprobs.token_ids, logprobs.logprobs, strict=True)
            for data in (self._bytes_of(token_id),)
        ]
        return PositionScores(shown[0], logprobs.rank, tuple(shown[1:]), offset)

    def _score_prompt(self, logprobs: Sequence[TokenLogprobs]) -> tuple[PositionScores, ...]:
        if self._prompt_detokenizer is None:
            self._prompt_detokenizer = Detokenizer(self._tokenizer, skip_special_tokens=False)
            self._prompt_offset = len(self._prompt_detokenizer.push(self._prompt_token_ids[:1]))
        scores: list[PositionScores] = []
        for entry in logprobs:
            scores.append(self._score(entry, self._prompt_offset))
            self._prompt_offset += len(self._prompt_detokenizer.push(entry.token_ids[:1]))
        return tuple(scores)


@dataclass(slots=True)
class TextFold:
    """The whole answer of one stream: ``add`` every delta, read the fields at the end."""

    token_ids: list[int] = field(default_factory=list)
    scores: list[PositionScores] = field(default_factory=list)
    prompt_scores: list[PositionScores] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    failure: Terminal | None = None
    _texts: list[str] = field(default_factory=list)
    _events: list[Event] | None = None

    def add(self, delta: TextDelta) -> None:
        self._texts.append(delta.text)
        if delta.events is not None:
            self._events = [] if self._events is None else self._events
            self._events.extend(delta.events)
        self.token_ids.extend(delta.token_ids)
        self.scores.extend(delta.scores)
        self.prompt_scores.extend(delta.prompt_scores)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.stop_reason = delta.stop_reason
            self.failure = delta.failure

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def events(self) -> tuple[Event, ...] | None:
        return None if self._events is None else merged(self._events)
