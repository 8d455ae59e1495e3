"""Stop strings in a stream: found across chunk borders, withheld until it is clear that they are not one.

Knows text only; tokens and requests are not its business.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from functools import lru_cache
from weakref import WeakValueDictionary

MAX_KEPT_CHARACTERS = 1024
"""Of stop strings together, whose automaton is kept when no request has them any more."""


class StopAutomaton:
    """Aho-Corasick automaton (CACM 18(6), 1975) over stop strings, immutable, shared by equal requests.

    A node stands for a prefix of some stop: ``owner(node)[:depth[node]]``. ``found[node]`` is the length of the longest
    stop that ends there, 0 for none. A node takes some 20 bytes: the characters of a stop are nodes one behind the
    other, and only where stops part is there a table.
    """

    __slots__ = (
        "__weakref__",
        "_branches",
        "_characters",
        "_goes_on",
        "_owners",
        "_stops",
        "depth",
        "fail",
        "first",
        "found",
    )

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._branches: dict[tuple[int, str], int] = {}  # where the child of a node is not the next one
        self._goes_on = bytearray(1)  # whether the next node is a child of this one
        self._owners = array("I", [0])
        self.depth = array("I", [0])
        self.found = array("I", [0])
        characters, parents = ["\0"], [0]  # by which a node is entered, and from where
        for position in range(len(stops)):
            self._insert(position, characters, parents)
        self._characters = "".join(characters)
        self.fail = self._link(parents)
        self.first = re.compile("[" + "".join(re.escape(character) for character in {stop[0] for stop in stops}) + "]")

    def owner(self, node: int) -> str:
        """A stop that begins with what the node stands for."""
        return self._stops[self._owners[node]]

    def _insert(self, position: int, characters: list[str], parents: list[int]) -> None:
        node = 0
        for character in self._stops[position]:
            if self._goes_on[node] and characters[node + 1] == character:
                node += 1
                continue
            child = self._branches.get((node, character))
            if child is None:
                child = len(parents)
                if node == child - 1:
                    self._goes_on[node] = 1
                else:
                    self._branches[node, character] = child
                characters.append(character)
                parents.append(node)
                self._goes_on.append(0)
                self._owners.append(position)
                self.depth.append(self.depth[node] + 1)
                self.found.append(0)
            node = child
        self.found[node] = len(self._stops[position])

    def _link(self, parents: list[int]) -> array[int]:
        fail = array("I", bytes(4 * len(parents)))
        for node in sorted(range(1, len(parents)), key=self.depth.__getitem__):
            parent, character = parents[node], self._characters[node]
            if parent:
                back = fail[parent]
                while (child := self._child(back, character)) is None and back:
                    back = fail[back]
                fail[node] = child or 0
            self.found[node] = self.found[node] or self.found[fail[node]]
        return fail

    def _child(self, node: int, character: str) -> int | None:
        if self._goes_on[node] and self._characters[node + 1] == character:
            return node + 1
        return self._branches.get((node, character))

    def advance(self, node: int, character: str) -> int:
        while True:
            if self._goes_on[node] and self._characters[node + 1] == character:
                return node + 1
            child = self._branches.get((node, character)) if self._branches else None
            if child is not None:
                return child
            if node == 0:
                return 0
            node = self.fail[node]


_open: WeakValueDictionary[tuple[str, ...], StopAutomaton] = WeakValueDictionary()


def _automaton(stops: tuple[str, ...]) -> StopAutomaton:
    """One for all streams that have it at the same time; small ones are kept for later requests, too."""
    if sum(map(len, stops)) <= MAX_KEPT_CHARACTERS:
        return _kept(stops)
    automaton = _open.get(stops)
    if automaton is None:
        automaton = _open[stops] = StopAutomaton(stops)
    return automaton


@lru_cache(maxsize=256)
def _kept(stops: tuple[str, ...]) -> StopAutomaton:
    return StopAutomaton(stops)


class StopFinder:
    """Passes text through until a stop string is complete. The result does not depend on how text is cut into chunks.

    The stop that is complete first wins; of several that end at the same character, the longest. Nothing of a stop is
    ever emitted, unless ``include``, which emits the whole of it. Time is linear in the text.
    """

    __slots__ = ("_automaton", "_include", "_node", "matched")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        if any(not stop for stop in stops):
            raise ValueError("stop strings must not be empty")
        self._automaton = _automaton(tuple(stops)) if stops else None
        self._include = include
        self._node = 0
        self.matched: str | None = None

    @property
    def is_active(self) -> bool:
        """False when there is no stop string, so that text may go around the finder."""
        return self._automaton is not None

    def push(self, text: str) -> tuple[str, str | None]:
        """Text that can go out, and the stop that was completed, if any. After a match everything is swallowed."""
        automaton = self._automaton
        if automaton is None:
            return text, None
        if self.matched is not None:
            return "", self.matched
        before = node = self._node
        position, end = 0, len(text)
        while position < end:
            if node == 0:
                candidate = automaton.first.search(text, position)
                if candidate is None:
                    break
                position = candidate.start()
            node = automaton.advance(node, text[position])
            position += 1
            length = automaton.found[node]
            if length:
                return self._complete(before, text, position, node, length)
        self._node = node
        num_ready = automaton.depth[before] + end - automaton.depth[node]
        return self._cut(before, text, num_ready), None

    def flush(self) -> str:
        """The end of the text: what was withheld goes out."""
        if self._automaton is None or self.matched is not None:
            return ""
        held = self._cut(self._node, "", self._automaton.depth[self._node])
        self._node = 0
        return held

    def _complete(self, before: int, text: str, position: int, node: int, length: int) -> tuple[str, str | None]:
        automaton = self._automaton
        assert automaton is not None
        depth = automaton.depth[node]
        self.matched = automaton.owner(node)[depth - length : depth]
        self._node = 0
        num_ready = automaton.depth[before] + position - length
        return self._cut(before, text, num_ready) + (self.matched if self._include else ""), self.matched

    def _cut(self, held_node: int, text: str, length: int) -> str:
        """The first ``length`` characters of what was withheld at ``held_node`` followed by ``text``."""
        assert self._automaton is not None
        held = self._automaton.depth[held_node]
        if held == 0:
            return text[:length]
        prefix = self._automaton.owner(held_node)[: min(held, length)]
        return prefix if length <= held else prefix + text[: length - held]
