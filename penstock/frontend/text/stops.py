"""Stop strings in a stream: found across chunk borders, withheld until it is clear that they are not one.

Knows text only; tokens and requests are not its business.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from functools import lru_cache


class StopAutomaton:
    """Aho-Corasick automaton (CACM 18(6), 1975) over stop strings, immutable, shared by equal requests.

    A node stands for a prefix of some stop: ``owner[node][:depth[node]]``. ``found[node]`` is the length of the longest
    stop that ends there, 0 for none.
    """

    __slots__ = ("depth", "edges", "fail", "first", "found", "owner")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.edges: list[dict[str, int]] = [{}]
        self.depth: list[int] = [0]
        self.found: list[int] = [0]
        self.owner: list[str] = [""]
        for stop in stops:
            self._insert(stop)
        self.fail = self._link()
        self.first = re.compile("[" + "".join(re.escape(character) for character in self.edges[0]) + "]")

    def _insert(self, stop: str) -> None:
        node = 0
        for character in stop:
            child = self.edges[node].get(character)
            if child is None:
                child = len(self.edges)
                self.edges[node][character] = child
                self.edges.append({})
                self.depth.append(self.depth[node] + 1)
                self.found.append(0)
                self.owner.append(stop)
            node = child
        self.found[node] = len(stop)

    def _link(self) -> list[int]:
        fail = [0] * len(self.edges)
        queue = deque(self.edges[0].values())
        while queue:
            node = queue.popleft()
            for character, child in self.edges[node].items():
                back = fail[node]
                while back and character not in self.edges[back]:
                    back = fail[back]
                fail[child] = self.edges[back].get(character, 0)
                self.found[child] = self.found[child] or self.found[fail[child]]
                queue.append(child)
        return fail

    def advance(self, node: int, character: str) -> int:
        while True:
            child = self.edges[node].get(character)
            if child is not None:
                return child
            if node == 0:
                return 0
            node = self.fail[node]


@lru_cache(maxsize=256)
def _automaton(stops: tuple[str, ...]) -> StopAutomaton:
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
        self.matched = automaton.owner[node][depth - length : depth]
        self._node = 0
        num_ready = automaton.depth[before] + position - length
        return self._cut(before, text, num_ready) + (self.matched if self._include else ""), self.matched

    def _cut(self, held_node: int, text: str, length: int) -> str:
        """The first ``length`` characters of what was withheld at ``held_node`` followed by ``text``."""
        assert self._automaton is not None
        held = self._automaton.depth[held_node]
        if held == 0:
            return text[:length]
        prefix = self._automaton.owner[held_node][: min(held, length)]
        return prefix if length <= held else prefix + text[: length - held]
