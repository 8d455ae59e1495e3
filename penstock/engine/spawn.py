"""The parent's side of an engine process: start it, notice its end, and never leave it behind."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable

from penstock.engine.launch import EngineChild
from penstock.ipc.channel import BACKLOG_MESSAGES
from penstock.ipc.client import IpcClient

STOP_S = 15.0  # the step in flight and the release of memory; after that the process is killed


class EngineProcess:
    """One engine process and the client to it. Make it inside the event loop; the process starts at once and imports
    what it needs, ``client.start(order)`` then tells it what to build. ``client.close()`` ends both. ``child`` is the
    process as the system sees it."""

    def __init__(
        self,
        *,
        child: EngineChild | None = None,
        preload: str = "",
        on_progress: Callable[[str], None] | None = None,
        receive_limit: int = BACKLOG_MESSAGES,
        num_clients: int = 1,
    ) -> None:
        """``child`` is an engine process that runs already; without one it is started here, with ``preload``.
        ``receive_limit`` and ``num_clients`` are those of an IpcClient. ``on_exit`` may be set: it gets a sentence when
        the process has ended."""
        self.on_exit: Callable[[str], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self._started = child or EngineChild(preload)
        self.child = self._started.process
        self.client = IpcClient(
            endpoints=self._started.endpoints,
            on_progress=on_progress,
            on_close=self._stop,
            receive_limit=receive_limit,
            num_clients=num_clients,
        )
        threading.Thread(target=self._watch, name="penstock-engine-watch", daemon=True).start()

    def _watch(self) -> None:
        code = self.child.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._on_exit, code)

    def _on_exit(self, code: int) -> None:
        self._exited.set()
        self.client.engine_exited(describe_exit(code))
        if self.on_exit is not None:
            self.on_exit(describe_exit(code))

    async def _stop(self) -> None:
        """After Shutdown was sent: wait, then kill. A process that has no model yet does not listen and has nothing
        to lose."""
        if not self.client.ready:
            self.child.kill()
        try:
            await asyncio.wait_for(self._exited.wait(), STOP_S)
        except TimeoutError:
            self.child.kill()
            await self._exited.wait()
        finally:
            self._started.abandon()


def describe_exit(code: int) -> str:
    """One sentence about how an engine process ended."""
    if code >= 0:
        return f"The engine process exited with code {code}."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " The system may have run out of memory." if -code == signal.SIGKILL else ""
    return f"The engine process was killed by {name}.{hint}"
