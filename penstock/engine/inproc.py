"""The engine in this process: its loop in a thread, behind the same client contract as the one over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence

from penstock.engine.engine import Engine
from penstock.errors import EngineDeadError
from penstock.ipc.open_requests import OpenRequests
from penstock.types.control import ControlCommand, ControlReply
from penstock.types.facts import EngineInfo
from penstock.types.output import EngineStats, OutputBatch, OutputSink
from penstock.types.request import GenerateRequest

Post = Callable[[Callable[[], None]], None]

log = logging.getLogger(__name__)


class InProcessClient:
    """Implements ``frontend.client.EngineClient``, and is the engine's output channel.

    ``build`` gets this client as its channel and returns the engine; it runs in the calling thread, so that its
    errors are the caller's. ``post`` decides in which thread sinks run; frontends need their event loop's. Without it
    sinks run in the engine's thread, between two steps, and must be quick.
    """

    def __init__(self, build: Callable[[InProcessClient], Engine], post: Post | None = None) -> None:
        self._post = post or _run_here
        self._requests = OpenRequests()
        self._request_ids = itertools.count(1)
        self._batches: deque[OutputBatch] = deque()
        self._drain_posted = False
        self._stats = EngineStats()
        self._crash: Exception | None = None
        self._engine = build(self)
        self._thread = threading.Thread(target=self._run, name="penstock-engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def new_request_id(self) -> int:
        return next(self._request_ids)

    def claim(self, request_ids: Sequence[int]) -> None:
        """An engine of one client takes whatever it submits."""

    def submit(self, request: GenerateRequest, sink: OutputSink) -> None:
        self._requests.add(request.request_id, sink)
        self._engine.submit(request)

    def abort(self, request_ids: Sequence[int]) -> None:
        self._engine.abort(tuple(request_ids))

    def stats(self) -> EngineStats:
        return self._stats

    def health(self) -> str:
        return self._requests.dead or self._engine.health()

    @property
    def death(self) -> BaseException | None:
        """The exception that ended the engine, for those who raise in its name; None while it lives."""
        died = self._engine.death
        return self._crash if died is None else died.__cause__ or died

    async def control(self, command: ControlCommand) -> ControlReply:
        """Raises EngineDeadError when the engine is gone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ControlReply] = loop.create_future()
        if self._requests.dead:
            raise EngineDeadError(self._requests.dead)

        def settle(reply: ControlReply) -> None:
            if not future.done():
                future.set_result(reply)

        def answer(reply: ControlReply) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, reply)

        self._engine.control(command, answer)
        return await future

    def control_now(self, command: ControlCommand) -> ControlReply:
        """The same for callers without an event loop: blocks until the step in flight has ended."""
        if self._requests.dead:
            raise EngineDeadError(self._requests.dead)
        replies: queue.SimpleQueue[ControlReply] = queue.SimpleQueue()
        self._engine.control(command, replies.put)
        return replies.get()

    async def close(self) -> None:
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """End the loop, fail what is open, release the executor. Idempotent; waits for the step in flight."""
        self._engine.stop()
        self._thread.join()

    def emit(self, batch: OutputBatch) -> None:
        """core.ports.OutputChannel; called in the engine's thread."""
        self._batches.append(batch)
        if not self._drain_posted:
            self._drain_posted = True
            self._post(self._drain)

    def _drain(self) -> None:
        # Cleared first: a batch that comes while the queue is emptied posts another, perhaps idle, drain.
        self._drain_posted = False
        with contextlib.suppress(IndexError):
            while True:
                batch = self._batches.popleft()
                if batch.stats is not None:
                    self._stats = batch.stats
                self._requests.deliver(batch)

    def _run(self) -> None:
        sentence = "The engine was stopped."
        try:
            self._engine.run()
        except Exception as error:  # the boundary of the engine: whatever it was, every request must hear of it
            log.exception("the engine cannot go on")
            self._crash = error
            sentence = f"The engine stopped: {error}"
        self._post(self._drain)
        self._post(lambda: self._end(sentence))

    def _end(self, sentence: str) -> None:
        self._stats = self._stats.at_rest()
        self._requests.fail_all(sentence)


def _run_here(call: Callable[[], None]) -> None:
    call()
