"""An engine in this process whose news arrives on an event loop, as frontends need it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from penstock.engine.inproc import Post


def on_event_loop(loop: asyncio.AbstractEventLoop) -> Post:
    """Run sinks on the loop's thread; many batches that come while the loop is busy cost one wake-up."""

    def post(call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed and with it everyone who could listen
            loop.call_soon_threadsafe(call)

    return post
