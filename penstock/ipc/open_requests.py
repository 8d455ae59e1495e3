"""The requests a client has submitted and not seen the end of. Knows no transport.

Holds the promise that every request gets exactly one terminal: a request leaves the table together with its terminal,
and whatever arrives for an id that is not in the table is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from penstock.errors import EngineDeadError
from penstock.ipc.codec import read_columns
from penstock.types.output import FailureKind, FinishReason, OutputBatch, OutputSink, Terminal, TokenUpdate

TokenSink = Callable[[Sequence[int], float], None]
"""Takes token ids that come with nothing else, and the moment of the round (``time.monotonic()`` seconds)."""

log = logging.getLogger(__name__)


class News:
    """What several messages brought, by request; a request is in ``tokens`` or in ``updates``, never in both.

    Tokens without anything else are collected as plain numbers. The first update with more turns what its request has
    so far into an update too, so that the order stays.
    """

    __slots__ = ("terminals", "tokens", "updates")

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.updates: dict[int, list[TokenUpdate]] = {}
        self.terminals: list[Terminal] = []

    def add_columns(self, request_ids: Iterable[int], token_ids: Iterable[int]) -> None:
        """One token each of many requests."""
        tokens = self.tokens
        if self.updates:
            for request_id, token_id in zip(request_ids, token_ids, strict=True):
                if request_id in self.updates:
                    self.updates[request_id].append(TokenUpdate(request_id, (token_id,)))
                else:
                    tokens.setdefault(request_id, []).append(token_id)
            return
        for request_id, token_id in zip(request_ids, token_ids, strict=True):
            try:
                tokens[request_id].append(token_id)
            except KeyError:
                tokens[request_id] = [token_id]

    def add_updates(self, updates: Iterable[TokenUpdate]) -> None:
        for update in updates:
            request_id = update.request_id
            mine = self.updates.get(request_id)
            if mine is None:
                earlier = self.tokens.pop(request_id, None)
                mine = self.updates[request_id] = [TokenUpdate(request_id, tuple(earlier))] if earlier else []
            mine.append(update)

    def take_updates(self, request_id: int) -> Sequence[TokenUpdate]:
        """All that a request has, as updates; it has nothing afterwards."""
        tokens = self.tokens.pop(request_id, None)
        if tokens is not None:
            return (TokenUpdate(request_id, tuple(tokens)),)
        return self.updates.pop(request_id, ())


class OpenRequests:
    """Sinks by request id. ``deliver`` is called from one thread; ``add`` and ``fail_all`` from any.

    A sink that also has a method ``on_tokens`` (a TokenSink) is told by it of tokens that come with nothing else: the
    usual news, which so costs neither a record nor a sequence of them.
    """

    def __init__(self) -> None:
        self._sinks: dict[int, OutputSink] = {}
        self._token_sinks: dict[int, TokenSink] = {}
        self._lock = threading.Lock()
        self._dead = ""

    def __len__(self) -> int:
        return len(self._sinks)

    @property
    def dead(self) -> str:
        """Empty while the engine lives, else the sentence given to ``fail_all``."""
        return self._dead

    def add(self, request_id: int, sink: OutputSink) -> None:
        """Raises EngineDeadError after ``fail_all``, ValueError for an id that is open."""
        on_tokens = getattr(sink, "on_tokens", None)
        if on_tokens is None:
            on_tokens = _token_sink(request_id, sink)
        with self._lock:
            if self._dead:
                raise EngineDeadError(self._dead)
            if request_id in self._sinks:
                raise ValueError(f"request id {request_id} is already open")
            self._sinks[request_id] = sink
            self._token_sinks[request_id] = cast(TokenSink, on_tokens)

    def deliver(self, batch: OutputBatch) -> None:
        """The news of one batch of updates."""
        news = News()
        news.add_updates(batch.updates)
        if batch.columns is not None:
            news.add_columns(*read_columns(batch.columns))
        news.terminals.extend(batch.terminals)
        self.deliver_news(news)

    def deliver_news(self, news: News) -> None:
        """One call per request that has news: its updates in order, and its terminal if it ended."""
        for terminal in news.terminals:
            request_id = terminal.request_id
            sink = self._sinks.pop(request_id, None)
            self._token_sinks.pop(request_id, None)
            updates = news.take_updates(request_id)
            if sink is not None:
                _call(sink, updates, terminal)
        if news.tokens:
            now = time.monotonic()
            find = self._token_sinks.get
            for request_id, tokens in news.tokens.items():
                on_tokens = find(request_id)
                if on_tokens is not None:
                    try:
                        on_tokens(tokens, now)
                    except Exception:  # as in _call
                        log.exception("the sink of a request raised; its news is lost")
        for request_id, updates in news.updates.items():
            sink = self._sinks.get(request_id)
            if sink is not None:
                _call(sink, updates, None)

    def fail_all(self, sentence: str) -> None:
        """The engine is gone: end every open request and refuse new ones. Only the first call has an effect."""
        with self._lock:
            if self._dead:
                return
            self._dead = sentence
            sinks, self._sinks = self._sinks, {}
            self._token_sinks = {}
        now = time.monotonic()
        for request_id, sink in sinks.items():
            _call(sink, (), Terminal(request_id, FinishReason.ERROR, FailureKind.ENGINE_DEAD, sentence, ended=now))


def _token_sink(request_id: int, sink: OutputSink) -> TokenSink:
    return lambda token_ids, _now: sink((TokenUpdate(request_id, tuple(token_ids)),), None)


def _call(sink: OutputSink, updates: Sequence[TokenUpdate], terminal: Terminal | None) -> None:
    try:
        sink(updates, terminal)
    except Exception:  # one broken request must not take the news from all others
        log.exception("the sink of a request raised; its news is lost")
