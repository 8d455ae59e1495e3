"""Cursor: reading a text that is still being written, as if it were all there.

A parser is a generator. It asks for what it wants with ``yield from``; while that cannot be decided yet the generator
waits, and goes on where it was when more text has come. No primitive looks at a character more than a constant number
of times, whatever the pieces, so a parser that is made of them is linear. Knows no dialect and no events.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import TypeVar

from penstock.frontend.dialects.json_scan import JsonScanner

T = TypeVar("T")
Steps = Generator[None, None, T]
"""A parser, or a part of one, that returns a T in the end."""
Sink = Callable[[str], None]

MAX_NAME_CHARACTERS = 1024
"""Of a tool's or a parameter's name; more means that the end of the name was lost."""
_NOT_SPACE = re.compile(r"\S")


class Malformed(Exception):  # noqa: N818  it is an outcome of reading
    """The text is not what the dialect writes. Everything that was not committed goes back to the user as content."""


class EndOfText(Exception):  # noqa: N818
    """The output ended where the parser needed more. Handled like :class:`Malformed`."""


class Literals:
    """Texts that are looked for together. The earliest one wins; of several at one place, the longest.

    Raises ValueError when one text lies inside another one before its end: which of them is meant would then depend on
    text that has not come yet.
    """

    __slots__ = ("_full", "_longest", "_partial", "_prefixed", "texts")

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(sorted(dict.fromkeys(texts), key=len, reverse=True))
        if not self.texts or not all(self.texts):
            raise ValueError("literals must be texts that are not empty")
        for outer in self.texts:
            for inner in self.texts:
                at = outer.find(inner, 1)
                if inner is not outer and at >= 0 and at + len(inner) < len(outer):
                    raise ValueError(f"{inner!r} lies inside {outer!r}")
        self._full = re.compile("|".join(map(re.escape, self.texts)))
        self._partial = re.compile(f"(?:{'|'.join(map(_beginnings, self.texts))})\\Z")
        self._longest = len(self.texts[0])
        self._prefixed = any(a is not b and a.startswith(b) for a in self.texts for b in self.texts)

    def find(self, text: str, start: int, is_last: bool) -> tuple[int, str | None]:
        """Where the first literal begins, and which it is. With None: where text begins that may become one, which is
        the length of ``text`` when there is none."""
        match = self._full.search(text, start)
        if match is not None:
            at = match.start()
            if is_last or not self._may_grow(text, at, match.end()):
                return at, match.group()
            return at, None
        if is_last:
            return len(text), None
        partial = self._partial.search(text, max(start, len(text) - self._longest + 1))
        return (partial.start() if partial is not None else len(text)), None

    def starts(self, text: str, start: int, is_last: bool) -> tuple[bool, str | None]:
        """Whether it is certain what ``text[start:]`` begins with, and the literal, None when with none."""
        found = next((literal for literal in self.texts if text.startswith(literal, start)), None)
        if is_last or len(text) - start >= self._longest:
            return True, found
        rest = text[start:]
        grows = any(len(literal) > len(rest) and literal.startswith(rest) for literal in self.texts)
        return not grows, found

    def _may_grow(self, text: str, at: int, end: int) -> bool:
        if not self._prefixed or len(text) - at >= self._longest:
            return False
        rest = text[at:]
        return any(len(literal) > end - at and literal.startswith(rest) for literal in self.texts)


def _beginnings(literal: str) -> str:
    """A pattern for every proper beginning of ``literal`` that has at least one character."""
    pattern = ""
    for character in reversed(literal[1:-1]):
        pattern = f"(?:{re.escape(character)}{pattern})?"
    return re.escape(literal[0]) + pattern if len(literal) > 1 else "(?!)"


@lru_cache(maxsize=1024)
def literals(*texts: str) -> Literals:
    """The one automaton for these texts. Only for texts that dialects declare, never for a request's."""
    return Literals(texts)


class Cursor:
    """The text of one answer, and the place up to which it is read.

    Read text stays until ``commit``, so that it can go back to the user when the parser fails. ``work`` counts
    characters that were looked at or moved.
    """

    __slots__ = ("_buffer", "_carried", "_ended", "_mark", "_position", "work")

    def __init__(self) -> None:
        self._buffer = ""
        self._position = 0
        self._mark = 0  # of the buffer, what lies before it is committed
        self._carried: list[str] = []  # read, not committed, and no more in the buffer
        self._ended = False
        self.work = 0

    # -- for the machine ----------------------------------------------------------------------------------------

    def feed(self, text: str) -> None:
        if self._mark < self._position:
            self._carried.append(self._buffer[self._mark : self._position])
        self._buffer = self._buffer[self._position :] + text if self._position < len(self._buffer) else text
        self._position = self._mark = 0
        self.work += len(self._buffer)

    def end(self) -> None:
        """No more text follows."""
        self._ended = True

    @property
    def num_unread(self) -> int:
        return len(self._buffer) - self._position

    def commit(self) -> None:
        """What is read was used: it will not come back."""
        self._carried.clear()
        self._mark = self._position

    def take_back(self, *, unread: bool = False) -> str:
        """The text that was read and not committed (and with ``unread`` all that is there), which commits it."""
        if unread:
            self._position = len(self._buffer)
        text = "".join(self._carried) + self._buffer[self._mark : self._position]
        self.work += len(text)
        self.commit()
        return text

    def put_back(self, text: str) -> None:
        """Read ``text`` again, which was the last that was taken back."""
        self._buffer = text + self._buffer[self._position :]
        self._position = self._mark = 0
        self.work += len(self._buffer)

    # -- for parsers --------------------------------------------------------------------------------------------

    def at_end(self) -> Steps[bool]:
        """True when nothing follows any more."""
        while self._position == len(self._buffer):
            if self._ended:
                return True
            yield
        return False

    def peek(self) -> Steps[str]:
        """The next character, which stays unread; empty at the end."""
        ended = yield from self.at_end()
        return "" if ended else self._buffer[self._position]

    def skip_space(self) -> Steps[None]:
        """Read white space, also none."""
        yield from self.stream_space(lambda _: None)

    def accept(self, *texts: str) -> Steps[str | None]:
        """Read one of the texts if it comes next, the longest that fits; else read nothing and return None."""
        wanted = literals(*texts)
        while True:
            certain, found = wanted.starts(self._buffer, self._position, self._ended)
            self.work += 1
            if certain:
                if found is not None:
                    self._position += len(found)
                    self.work += len(found)
                return found
            yield

    def expect(self, *texts: str) -> Steps[str]:
        """Read one of the texts, which must come next."""
        found = yield from self.accept(*texts)
        if found is None:
            raise (EndOfText if self._ended and not self.num_unread else Malformed)(f"expected {' or '.join(texts)}")
        return found

    def stream_space(self, sink: Sink) -> Steps[None]:
        """Give white space to ``sink`` as it comes; stop before anything else."""
        while True:
            start = self._position
            match = _NOT_SPACE.search(self._buffer, start)
            end = len(self._buffer) if match is None else match.start()
            self.work += end - start + 1
            self._position = end
            if end > start:
                sink(self._buffer[start:end])
            if match is not None or self._ended:
                return
            yield

    def stream_rest(self, sink: Sink) -> Steps[None]:
        """Give everything that still comes to ``sink``."""
        while True:
            start, self._position = self._position, len(self._buffer)
            self.work += self._position - start + 1
            if self._position > start:
                sink(self._buffer[start:])
            if self._ended:
                return
            yield

    def stream_until(self, *texts: str, sink: Sink) -> Steps[str]:
        """Give text to ``sink`` as it comes, up to the first of the texts, which is read and returned.

        ``sink`` may commit: at that moment exactly what it has been given is read. At the end of the output ``sink``
        gets the rest, and EndOfText is raised.
        """
        wanted = literals(*texts)
        while True:
            start = self._position
            at, found = wanted.find(self._buffer, start, self._ended)
            self.work += at - start + 1
            if at > start:
                self._position = at
                sink(self._buffer[start:at])
            if found is not None:
                self._position += len(found)
                self.work += len(found)
                return found
            if self._ended:
                raise EndOfText(f"expected {' or '.join(texts)}")
            yield

    def read_until(self, *texts: str, limit: int | None = MAX_NAME_CHARACTERS) -> Steps[tuple[str, str]]:
        """The text up to the first of the texts, and that one, which is read too. ``limit`` None takes any length."""
        wanted = literals(*texts)
        parts: list[str] = []
        size = 0
        while True:
            start = self._position
            at, found = wanted.find(self._buffer, start, self._ended)
            if limit is not None and size + at - start > limit:
                # Exactly this far, so that what comes back does not depend on how the text was cut.
                self._position = start + limit - size
                raise Malformed(f"expected {' or '.join(texts)} within {limit} characters")
            self.work += at - start + 1
            size += at - start
            parts.append(self._buffer[start:at])
            self._position = at
            if found is not None:
                self._position += len(found)
                self.work += len(found)
                return "".join(parts), found
            if self._ended:
                raise EndOfText(f"expected {' or '.join(texts)}")
            yield

    def read_while(self, pattern: re.Pattern[str], limit: int = MAX_NAME_CHARACTERS) -> Steps[str]:
        """The longest run of characters that each match ``pattern``, a character class; may be empty."""
        parts: list[str] = []
        size = 0
        while True:
            start = end = self._position
            last = min(len(self._buffer), start + limit - size)
            while end < last and pattern.match(self._buffer[end]):
                end += 1
            self.work += end - start + 1
            size += end - start
            if size == limit and end < len(self._buffer) and pattern.match(self._buffer[end]):
                self._position = end
                raise Malformed(f"a word is longer than {limit} characters")
            parts.append(self._buffer[start:end])
            self._position = end
            if end < len(self._buffer) or self._ended:
                return "".join(parts)
            yield

    def json_value(self, sink: Sink) -> Steps[None]:
        """Give one JSON value to ``sink`` as it comes, checked and mended; stop behind it. ``sink`` may commit."""
        scanner = JsonScanner()
        while True:
            pieces: list[str] = []
            start = self._position
            self._position = scanner.scan(self._buffer, start, pieces, is_last=self._ended)
            self.work += self._position - start + 1
            if pieces:
                sink("".join(pieces))
            if scanner.error:
                raise Malformed(scanner.error)
            if scanner.complete:
                return
            if self._ended:
                raise EndOfText("a JSON value is not complete")
            yield

    def json_text(self) -> Steps[str]:
        """One JSON value, whole."""
        parts: list[str] = []
        yield from self.json_value(parts.append)
        return "".join(parts)

    def json_string(self) -> Steps[str]:
        """One JSON string, decoded. Half a character is Malformed: nobody could write it down."""
        first = yield from self.peek()
        if first != '"':
            raise (Malformed if first else EndOfText)("expected a JSON string")
        text = yield from self.json_text()
        decoded = json.loads(text)
        assert isinstance(decoded, str)
        if not decoded.isascii() and any("\ud800" <= character <= "\udfff" for character in decoded):
            raise Malformed("an escape is half a character")
        return decoded
