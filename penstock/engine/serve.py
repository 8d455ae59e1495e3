"""``penstock serve``: starts the engine process, then loads the frontend beside it. See ``serving`` for the rest."""

from __future__ import annotations

import gc
import signal
import sys
import threading
from typing import TYPE_CHECKING

from penstock.engine.launch import EngineChild

if TYPE_CHECKING:
    from collections.abc import Callable

    from penstock.config.sections import EngineConfig, MockConfig, ServerConfig


def run_server(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    *,
    mock: MockConfig | None = None,
    announce: Callable[[str, str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then drain, stop the engine and return. Blocks; call from the main thread.

    ``announce`` is called once with the server's URL and the model's shown name, when requests are welcome. Raises the
    UserError that prevents the start, and EngineDeadError when the engine could not start for another reason or died
    while it served. A server whose engine has died keeps answering: its health routes say so.
    """
    if threading.current_thread() is threading.main_thread():  # until the server has its own: there is nothing to drain
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gc.disable()  # nothing of what is imported will be garbage; settle_memory turns it on again
    child = EngineChild(preload="penstock.engine.mock_engine" if mock is not None else "torch")
    try:
        from penstock.engine.serving import serve_beside

        serve_beside(child, engine_config, server_config, mock, announce or (lambda _url, _name: None))
    finally:
        gc.enable()
        child.abandon()
