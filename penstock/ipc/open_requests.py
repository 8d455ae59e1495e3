"""The requests a client has submitted and not seen the end of. Knows no transport.

Holds the promise that every request gets exactly one terminal: a request leaves the table together with its terminal,
and whatever arrives for an id that is not in the table is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from penstock.errors import EngineDeadError
from penstock.types.output import FailureKind, FinishReason, OutputBatch, Terminal, TokenUpdate

Sink = Callable[[Sequence[TokenUpdate], Terminal | None], None]

log = logging.getLogger(__name__)


class OpenRequests:
    """Sinks by request id. ``deliver`` is called from one thread; ``add`` and ``fail_all`` from any."""

    def __init__(self) -> None:
        self._sinks: dict[int, Sink] = {}
        self._lock = threading.Lock()
        self._dead = ""

    def __len__(self) -> int:
        return len(self._sinks)

    @property
    def dead(self) -> str:
        """Empty while the engine lives, else the sentence given to ``fail_all``."""
        return self._dead

    def add(self, request_id: int, sink: Sink) -> None:
        """Raises EngineDeadError after ``fail_all``, ValueError for an id that is open."""
        with self._lock:
            if self._dead:
                raise EngineDeadError(self._dead)
            if request_id in self._sinks:
                raise ValueError(f"request id {request_id} is already open")
            self._sinks[request_id] = sink

    def deliver(self, batch: OutputBatch) -> None:
        """One call per request that has news: its updates in order, and its terminal if it ended."""
        news: dict[int, list[TokenUpdate]] = {}
        for update in batch.updates:
            news.setdefault(update.request_id, []).append(update)
        for terminal in batch.terminals:
            sink = self._sinks.pop(terminal.request_id, None)
            updates = news.pop(terminal.request_id, ())
            if sink is not None:
                _call(sink, updates, terminal)
        for request_id, updates in news.items():
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
        now = time.monotonic()
        for request_id, sink in sinks.items():
            _call(sink, (), Terminal(request_id, FinishReason.ERROR, FailureKind.ENGINE_DEAD, sentence, ended=now))


def _call(sink: Sink, updates: Sequence[TokenUpdate], terminal: Terminal | None) -> None:
    try:
        sink(updates, terminal)
    except Exception:  # one broken request must not take the news from all others
        log.exception("the sink of a request raised; its news is lost")
