"""Machine: text of one answer in, events out. The same for every dialect, for streams and for whole answers.

Knows text alone. What comes out does not depend on how the text is cut: a whole answer is a stream of one piece.
"""

from __future__ import annotations

from penstock.frontend.dialects.contract import Dialect, Reading
from penstock.frontend.dialects.cursor import Cursor, EndOfText, Steps
from penstock.frontend.dialects.events import Event, merged
from penstock.frontend.dialects.tagged import read_tagged
from penstock.frontend.dialects.writer import Enough, Writer


class Machine:
    """Reads one answer. Not thread-safe. Time is linear in the text, however it is cut."""

    __slots__ = ("_steps", "_waits", "cursor", "is_done", "writer")

    def __init__(self, dialect: Dialect, reading: Reading) -> None:
        self.cursor = Cursor()
        self.writer = Writer(
            self.cursor, reading.tools, gap=dialect.gap, new_id=dialect.new_call_id, max_calls=reading.max_calls
        )
        self.is_done = False
        self._steps = _read(dialect, self.cursor, self.writer, reading)
        self._waits = self._step()

    @property
    def num_completed(self) -> int:
        """Complete calls so far."""
        return self.writer.num_completed

    def push(self, text: str) -> tuple[Event, ...]:
        """News in ``text``. Nothing more once ``is_done``: the request has all the calls that it wants."""
        if not text or self.is_done:
            return ()
        self.cursor.feed(text)
        self._waits = self._step()
        return self._news()

    def finish(self) -> tuple[Event, ...]:
        """The end of the output. Whatever was withheld comes out; an open call is incomplete."""
        if self.is_done:
            return ()
        self.cursor.end()
        while self._waits:
            self._waits = self._step()
        self.writer.break_off()
        if rest := self.cursor.take_back(unread=True):
            self.writer.content(rest)
        self.writer.finish()
        self.is_done = True
        return self._news()

    def _news(self) -> tuple[Event, ...]:
        events = self.writer.take_events()
        return events if len(events) < 2 else merged(events)

    def _step(self) -> bool:
        """Read as far as the text goes; False when the reader has returned."""
        try:
            next(self._steps)
        except StopIteration as stop:
            self.is_done = bool(stop.value)
            return False
        return True


def _read(dialect: Dialect, text: Cursor, out: Writer, reading: Reading) -> Steps[bool]:
    """True when reading ended because the request has enough."""
    try:
        yield from (dialect.read(text, out, reading) if dialect.read else read_tagged(dialect, text, out, reading))
    except EndOfText:
        return False
    except Enough:
        return True
    # A reader of its own may return early: everything behind that is content.
    yield from text.stream_rest(out.content)
    return False
