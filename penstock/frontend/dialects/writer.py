"""Writer: the events of one answer. Owns call indices and ids, unknown tools, and the white space around calls.

Every text that is written commits what the cursor has read: it will not come back. Knows no dialect's texts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from penstock.frontend.dialects.cursor import Cursor, Malformed
from penstock.frontend.dialects.events import ArgumentText, CallBegun, CallEnded, ContentText, Event, ReasoningText

Schema = Mapping[str, Any]


class Enough(Exception):  # noqa: N818  nothing is wrong
    """The request wants no more calls than there are; nothing after this counts."""


def openai_call_id(_name: str, _index: int) -> str:
    return f"call_{os.urandom(12).hex()}"


class Writer:
    """``tools`` has the parameters' schema of every tool by name. ``gap`` is what the template puts between content
    and a call.

    White space before a call is no content: all of it when nothing else stands there, else one ``gap``. Newlines
    around reasoning are none either; templates take them away and put their own.
    """

    __slots__ = (
        "_content_begun", "_cursor", "_events", "_gap", "_held", "_held_newlines", "_ids", "_max_calls", "_new_id",
        "_open", "_reasoning_begun", "_skips_newlines", "num_begun", "num_completed", "tools",
    )  # fmt: skip

    def __init__(
        self,
        cursor: Cursor,
        tools: Mapping[str, Schema],
        *,
        gap: str = "\n",
        new_id: Callable[[str, int], str] = openai_call_id,
        max_calls: int | None = None,
    ) -> None:
        self.tools = tools
        self.num_begun = 0
        self.num_completed = 0
        self._cursor = cursor
        self._gap = gap
        self._new_id = new_id
        self._max_calls = max_calls
        self._events: list[Event] = []
        self._ids: set[str] = set()
        self._open = False
        self._held: list[str] = []  # white space that is content unless a call follows
        self._content_begun = False  # since the beginning or the last call
        self._held_newlines: list[str] = []
        self._reasoning_begun = False
        self._skips_newlines = False  # behind reasoning

    @property
    def has_content(self) -> bool:
        """Whether content stands since the beginning or the last call."""
        return self._content_begun

    def take_events(self) -> tuple[Event, ...]:
        events = tuple(self._events)
        self._events.clear()
        return events

    def content(self, text: str) -> None:
        """Text for the user, as it comes."""
        self._cursor.commit()
        if self._skips_newlines:
            text = text.lstrip("\n")
        body = text.rstrip()
        if body:
            self._skips_newlines = False
            self._content_begun = True
            self._emit_held()
            self._events.append(ContentText(body))
        if len(body) < len(text):
            self._skips_newlines = False
            self._held.append(text[len(body) :])

    def reasoning(self, text: str) -> None:
        """The model's thoughts, as they come."""
        self._cursor.commit()
        if not self._reasoning_begun:
            text = text.lstrip("\n")
        body = text.rstrip("\n")
        if body:
            if self._held_newlines:
                self._events.append(ReasoningText("".join(self._held_newlines)))
                self._held_newlines.clear()
            self._reasoning_begun = True
            self._events.append(ReasoningText(body))
        if len(body) < len(text):
            self._held_newlines.append(text[len(body) :])

    def begin_reasoning(self) -> None:
        """Reasoning opens. White space that stands alone before it is no content."""
        self._cursor.commit()
        if not self._content_begun:
            self._held.clear()
        if self._reasoning_begun:  # a second thought: the reader sees one text
            self._events.append(ReasoningText("\n"))
        self._reasoning_begun = False

    def end_reasoning(self, *, commit: bool = True) -> None:
        """Reasoning closes. Without ``commit`` the text that closed it is the beginning of something else."""
        if commit:
            self._cursor.commit()
        if not self._content_begun:
            self._held.clear()
        self._held_newlines.clear()
        self._skips_newlines = True

    def schema(self, name: str) -> Schema:
        """The parameters' schema of a tool. Raises Malformed for a name that the request does not have."""
        try:
            return self.tools[name]
        except KeyError:
            raise Malformed(f"there is no tool {name[:64]!r}") from None

    def begin(self, name: str, call_id: str | None = None) -> None:
        """A call whose name is certain, with the id that the model wrote, if it wrote one. It ends open reasoning.

        Raises Malformed for an unknown tool, and when a call is open.
        """
        self.schema(name)
        if self._open:
            raise Malformed("a call begins inside a call")
        self._cursor.commit()
        self._held_newlines.clear()
        self._settle_held()
        index = self.num_begun
        self.num_begun += 1
        self._open = True
        self._events.append(CallBegun(index, self._id_of(call_id or self._new_id(name, index)), name))

    def arguments(self, text: str) -> None:
        """The next piece of the open call's arguments, which together are one JSON object."""
        assert self._open, "arguments without a call"
        self._cursor.commit()
        if text:
            self._events.append(ArgumentText(self.num_begun - 1, text))

    def end(self) -> None:
        """The open call is complete. Raises Enough when it was the last one that the request wants."""
        assert self._open, "an end without a call"
        self._cursor.commit()
        self._open = False
        self._events.append(CallEnded(self.num_begun - 1, True))
        self.num_completed += 1
        if self.num_completed == self._max_calls:
            raise Enough

    def break_off(self) -> bool:
        """The open call will never be complete; False when there is none."""
        was_open = self._open
        if was_open:
            self._open = False
            self._events.append(CallEnded(self.num_begun - 1, False))
        return was_open

    def finish(self) -> None:
        """The output has ended: what was held goes out, unless it only stood between or behind calls."""
        if self._held_newlines:
            self._events.append(ReasoningText("".join(self._held_newlines)))
            self._held_newlines.clear()
        if self._content_begun or not self.num_begun:
            self._emit_held()

    def _id_of(self, call_id: str) -> str:
        """``call_id``, or another one where the answer has it already: clients tell calls apart by it."""
        if call_id in self._ids:
            call_id = openai_call_id("", 0)
        self._ids.add(call_id)
        return call_id

    def _settle_held(self) -> None:
        if self._content_begun:
            held = "".join(self._held).removesuffix(self._gap)
            if held:
                self._events.append(ContentText(held))
        self._held.clear()
        self._content_begun = False
        self._skips_newlines = False

    def _emit_held(self) -> None:
        if self._held:
            self._events.append(ContentText("".join(self._held)))
            self._held.clear()
