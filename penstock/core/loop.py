"""The loop around an EngineCore: a thread-safe inbox, and turns for as long as there is work.

Used by the engine process and by the in-process API alike. Any thread may call ``submit``, ``abort``, ``control``
and ``stop``; one thread calls ``run``. Knows neither sockets nor what a step does.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from penstock.core.engine import EngineCore
from penstock.types.control import ControlCommand, ControlReply
from penstock.types.request import GenerateRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Abort:
    request_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Control:
    command: ControlCommand
    reply: Future[ControlReply]


_Message = GenerateRequest | _Abort | _Control


class CoreLoop:
    """``poll_s`` is the pause after a turn that learned nothing although work is open (a tier is being asked)."""

    def __init__(self, core: EngineCore, *, poll_s: float = 0.001) -> None:
        self.core = core
        self._poll_s = poll_s
        self._inbox: deque[_Message] = deque()
        self._wake = threading.Event()
        self._lock = threading.Lock()  # between a late message and the end of the loop
        self._stopping = False
        self._ended = False

    # -- any thread ----------------------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. After the loop has ended it is answered at once, with ENGINE_DEAD."""
        self._post(request)

    def abort(self, request_ids: Sequence[int]) -> None:
        self._post(_Abort(tuple(request_ids)))

    def control(self, command: ControlCommand) -> Future[ControlReply]:
        """Queue a command; its future is done between two steps. Cancelling the future has no effect."""
        message = _Control(command, Future())
        message.reply.set_running_or_notify_cancel()
        self._post(message)
        return message.reply

    def stop(self) -> None:
        """Ask ``run`` to return after its current turn; open requests end with ENGINE_DEAD."""
        self._stopping = True
        self._wake.set()

    def _post(self, message: _Message) -> None:
        with self._lock:
            if self._ended:
                self._deliver(message)
                return
            self._inbox.append(message)
        self._wake.set()

    # -- the loop's thread ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until ``stop``. Blocks while idle. An exception of the core ends every request, then is raised."""
        reason = "The engine was stopped."
        try:
            while not self._stopping:
                self.turn()
        except Exception as error:
            reason = f"The engine failed: {error}"
            raise
        finally:
            self._end(reason)

    def turn(self) -> None:
        """Deliver what has arrived and run one step; wait when there is nothing to do, not even for the executor."""
        self._wake.clear()
        while self._inbox:
            self._deliver(self._inbox.popleft())
        if self.core.step(block=True) or self._stopping:
            return
        if not self._wake.is_set() and self.core.idle():
            return
        self._wake.wait(self._poll_s if self.core.has_work else None)

    def _deliver(self, message: _Message) -> None:
        if isinstance(message, GenerateRequest):
            try:
                self.core.add(message)
            except ValueError as error:  # an id in use: its owner must not suffer for the second one's mistake
                log.error("a request was not taken: %s", error)
        elif isinstance(message, _Abort):
            self.core.abort(message.request_ids)
        else:
            message.reply.set_result(self.core.control(message.command))

    def _end(self, reason: str) -> None:
        with self._lock:
            self._ended = True
            self.core.fail_all(reason)
            while self._inbox:
                self._deliver(self._inbox.popleft())
