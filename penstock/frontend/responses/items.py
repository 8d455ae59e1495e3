"""What a dialect has read -> items of a response, and the events that tell of them. An answer is its items at the end.

Events are dictionaries without sequence numbers; ``format`` numbers them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from penstock.frontend.dialects.events import (
    ArgumentText,
    CallBegun,
    CallEnded,
    ContentText,
    Event,
    ReasoningText,
)
from penstock.frontend.openai.answers import ChatLogprob
from penstock.frontend.responses.answers import (
    COMPLETED,
    IN_PROGRESS,
    INCOMPLETE,
    FunctionCall,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningPart,
)


@dataclass(slots=True)
class ItemWriter:
    """Feed it the events of one answer in order, then ``close``. ``items`` are complete but for an open last one.

    ``new_id`` makes the id of an item from its kind's prefix and its position.
    """

    new_id: Callable[[str, int], str]
    items: list[OutputItem] = field(default_factory=list)
    _news: list[dict[str, Any]] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _logprobs: list[ChatLogprob] = field(default_factory=list)
    _open: OutputItem | None = None

    def take_news(self) -> list[dict[str, Any]]:
        news, self._news = self._news, []
        return news

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case ContentText(text):
                    self.add_text(text, [])
                case ReasoningText(text):
                    self._add_reasoning(text)
                case CallBegun(_, call_id, name):
                    self._begin_call(call_id, name)
                case ArgumentText(_, text):
                    self._texts.append(text)
                    self._tell("response.function_call_arguments.delta", delta=text)
                case CallEnded(_, complete):
                    self._end(COMPLETED if complete else INCOMPLETE)

    def add_text(self, text: str, logprobs: list[ChatLogprob]) -> None:
        """Content, with what is known of its tokens."""
        if not isinstance(self._open, OutputMessage):
            self._end(COMPLETED)
            position = len(self.items)
            item = OutputMessage(id=self.new_id("msg", position), status=IN_PROGRESS, content=[])
            self._begin(item, OutputText(text=""))
        self._texts.append(text)
        self._logprobs.extend(logprobs)
        self._tell("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def close(self, *, complete: bool) -> None:
        """The end of the answer. One that says nothing is an empty message, so that the turn is there to go on from."""
        if not self.items:
            self.add_text("", [])
        self._end(COMPLETED if complete else INCOMPLETE)

    def _add_reasoning(self, text: str) -> None:
        if not isinstance(self._open, ReasoningItem):
            self._end(COMPLETED)
            item = ReasoningItem(id=self.new_id("rs", len(self.items)), status=IN_PROGRESS, content=[])
            self._begin(item, ReasoningPart(text=""))
        self._texts.append(text)
        self._tell("response.reasoning_text.delta", content_index=0, delta=text)

    def _begin_call(self, call_id: str, name: str) -> None:
        self._end(COMPLETED)
        item_id = self.new_id("fc", len(self.items))
        self._begin(FunctionCall(id=item_id, call_id=call_id, name=name, status=IN_PROGRESS, arguments=""), None)

    def _begin(self, item: OutputItem, part: OutputText | ReasoningPart | None) -> None:
        self._open = item
        self.items.append(item)
        self._news.append(
            {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": _copy(item)}
        )
        if part is not None:
            self._tell("response.content_part.added", content_index=0, part=part)

    def _end(self, status: str) -> None:
        item = self._open
        if item is None:
            return
        text = "".join(self._texts)
        item.status = status
        match item:
            case OutputMessage():
                said = OutputText(text=text, logprobs=list(self._logprobs))
                item.content = [said]
                self._tell("response.output_text.done", content_index=0, text=text, logprobs=said.logprobs)
                self._tell("response.content_part.done", content_index=0, part=said)
            case ReasoningItem():
                thought = ReasoningPart(text=text)
                item.content = [thought]
                self._tell("response.reasoning_text.done", content_index=0, text=text)
                self._tell("response.content_part.done", content_index=0, part=thought)
            case FunctionCall():
                item.arguments = text
                self._tell("response.function_call_arguments.done", name=item.name, arguments=text)
        self._news.append({"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item})
        self._texts.clear()
        self._logprobs.clear()
        self._open = None

    def _tell(self, kind: str, **fields: Any) -> None:
        assert self._open is not None
        self._news.append({"type": kind, "item_id": self._open.id, "output_index": len(self.items) - 1, **fields})


def _copy(item: OutputItem) -> dict[str, Any]:
    """The item as it is now: it goes on growing before the event is written."""
    built: dict[str, Any] = msgspec.to_builtins(item)
    return built
