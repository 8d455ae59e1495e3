"""The engine process as the system sees it. Loads next to nothing, so that it can be started before all else: it then
imports what it needs while this process does."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

from penstock.ipc.endpoints import PrivateEndpoints

# The child imports from where its parent does. Its standard input stays open as long as the parent lives.
_BOOT = "import json,sys;sys.path[:]=json.loads(sys.stdin.readline());from penstock.engine.process import main;main()"


class EngineChild:
    """A new engine process, not yet told what to build. Whoever makes it calls ``abandon`` in the end, whatever has
    become of it."""

    def __init__(self, preload: str = "") -> None:
        """``preload`` names a module that the process imports before it knows its order, e.g. "torch"."""
        self.endpoints = PrivateEndpoints()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, self.endpoints.address, preload],
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno() if _has_fileno(sys.stderr) else None,  # stdout is for answers
        )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the watcher says so
            self.process.stdin.write(json.dumps(sys.path).encode() + b"\n")
            self.process.stdin.flush()

    def abandon(self) -> None:
        """Kill the process if it still runs, and release what belongs to it. Idempotent."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.endpoints.remove()


def _has_fileno(stream: object) -> bool:
    try:
        return bool(stream.fileno() >= 0)  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
