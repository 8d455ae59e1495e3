"""The parent's side of an engine process: start it, notice its end, and never leave it behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from penstock.ipc.client import IpcClient

STOP_S = 15.0  # the step in flight and the release of memory; after that the process is killed

# The child imports from where its parent does. Its standard input stays open as long as the parent lives.
_BOOT = "import json,sys;sys.path[:]=json.loads(sys.stdin.readline());from penstock.engine.process import main;main()"


class EngineProcess:
    """One engine process and the client to it. Make it inside the event loop; the process starts at once and imports
    what it needs, ``client.start(order)`` then tells it what to build. ``client.close()`` ends both. ``child`` is the
    process as the system sees it."""

    def __init__(
        self,
        *,
        preload: str = "",
        on_progress: Callable[[str], None] | None = None,
        receive_limit: int = 0,
        num_clients: int = 1,
    ) -> None:
        """``preload`` names a module that the process imports before it knows its order, e.g. "torch";
        ``receive_limit`` and ``num_clients`` are those of an IpcClient. ``on_exit`` may be set: it gets a sentence when
        the process has ended."""
        self.on_exit: Callable[[str], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self.client = IpcClient(
            on_progress=on_progress, on_close=self._stop, receive_limit=receive_limit, num_clients=num_clients
        )
        self.child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, self.client.address, preload],
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno() if _has_fileno(sys.stderr) else None,  # stdout is for answers
        )
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the watcher says so
            self.child.stdin.write(json.dumps(sys.path).encode() + b"\n")
            self.child.stdin.flush()
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
            assert self.child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self.child.stdin.close()


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


def _has_fileno(stream: object) -> bool:
    try:
        return bool(stream.fileno() >= 0)  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
