"""What a reader of an answer says, and the whole answer as a fold over it. Knows no dialect and no HTTP format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ContentText:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A tool call: ``index`` counts from 0 without gaps, ``name`` is a tool of the request."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentText:
    """The next piece of the call's arguments. All pieces of a complete call are one JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """``complete`` is False when the output broke off or broke down inside the call: its arguments end anywhere."""

    index: int
    complete: bool


Event = ContentText | ReasoningText | CallBegun | ArgumentText | CallEnded


@dataclass(slots=True)
class ToolCall:
    """A call as far as it has come. ``complete`` turns true at its end."""

    id: str
    name: str
    arguments: str = ""
    complete: bool = False


@dataclass(slots=True)
class AnswerFold:
    """The whole answer: ``add`` all events in order, then read. The only way in which an answer is put together."""

    calls: list[ToolCall] = field(default_factory=list)
    _content: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)
    _arguments: list[list[str]] = field(default_factory=list)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case ContentText(text):
                    self._content.append(text)
                case ReasoningText(text):
                    self._reasoning.append(text)
                case CallBegun(_, call_id, name):
                    self.calls.append(ToolCall(call_id, name))
                    self._arguments.append([])
                case ArgumentText(index, text):
                    self._arguments[index].append(text)
                case CallEnded(index, complete):
                    self.calls[index].complete = complete
                    self.calls[index].arguments = "".join(self._arguments[index])

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)


def merged(events: Sequence[Event]) -> tuple[Event, ...]:
    """The same news in as few events as possible: neighbouring texts of one kind become one."""
    groups: list[tuple[Event, list[str]]] = []
    for event in events:
        if isinstance(event, CallBegun | CallEnded):
            groups.append((event, []))
        elif groups and _continues(groups[-1][0], event):
            groups[-1][1].append(event.text)
        else:
            groups.append((event, [event.text]))
    return tuple(_with_text(event, texts) if len(texts) > 1 else event for event, texts in groups)


def _continues(last: Event, event: Event) -> bool:
    if isinstance(last, ArgumentText):
        return isinstance(event, ArgumentText) and last.index == event.index
    return type(last) is type(event)


def _with_text(event: Event, texts: list[str]) -> Event:
    joined = "".join(texts)
    if isinstance(event, ArgumentText):
        return ArgumentText(event.index, joined)
    return ContentText(joined) if isinstance(event, ContentText) else ReasoningText(joined)
