"""AnswerStream: a TextStream whose text is read by a dialect's machine, so that deltas say what the text means.

Only for requests whose answer may hold more than content; all others use TextStream itself.
"""

from __future__ import annotations

import dataclasses

from penstock.frontend.dialects.contract import Dialect, Reading
from penstock.frontend.dialects.events import ReasoningText
from penstock.frontend.dialects.machine import Machine
from penstock.frontend.text.stream import TextDelta, TextStream
from penstock.types.output import Terminal, TokenUpdate


class AnswerStream:
    """Same use as TextStream; every delta has ``events``. Its ``text``, token ids and scores stay those of the model.

    ``num_reasoning_tokens`` counts the tokens after which the text was reasoning, with the tag that ends it.

    A stream that stops becomes "tool_calls" when at least one call is complete. When the request has all the calls
    that it wants, the stream ends like one whose stop string has come.
    """

    __slots__ = ("_machine", "_reasons", "_text", "finish_reason", "num_reasoning_tokens")

    def __init__(self, text: TextStream, dialect: Dialect, reading: Reading) -> None:
        self._text = text
        self._machine = Machine(dialect, reading)
        self._reasons = reading.in_reasoning  # the last that was read is reasoning
        self.finish_reason: str | None = None
        self.num_reasoning_tokens = 0

    @property
    def num_output_tokens(self) -> int:
        return self._text.num_output_tokens

    def on_update(self, update: TokenUpdate) -> TextDelta:
        """News that are certain after these tokens. Empty after the stream has finished."""
        if self.finish_reason is not None:
            return TextDelta(events=())
        return self._read(self._text.on_update(update))

    def on_terminal(self, terminal: Terminal) -> TextDelta:
        """What was withheld, and the finish reason; empty when the stream has ended before."""
        if self.finish_reason is not None:
            return TextDelta(events=())
        return self._read(self._text.on_terminal(terminal))

    def _read(self, delta: TextDelta) -> TextDelta:
        machine = self._machine
        events = machine.push(delta.text)
        if events:
            self._reasons = isinstance(events[-1], ReasoningText)
        if self._reasons:
            self.num_reasoning_tokens += len(delta.token_ids)
        if machine.is_done:
            self.finish_reason = "tool_calls"
            return dataclasses.replace(
                delta, events=events, finish_reason=self.finish_reason, abort=True, stop_reason=None
            )
        if delta.finish_reason is None:
            return dataclasses.replace(delta, events=events)
        events += machine.finish()
        stopped = delta.finish_reason == "stop" and machine.num_completed > 0
        self.finish_reason = "tool_calls" if stopped else delta.finish_reason
        return dataclasses.replace(delta, events=events, finish_reason=self.finish_reason)
