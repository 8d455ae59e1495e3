"""Main of the engine process: handshake, build, run, and one exit for every end.

It lives no longer than its parent, leaves signals to the parent, and never writes to standard output.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import signal
import sys
import threading
from typing import TYPE_CHECKING

from penstock.config import env
from penstock.engine.order import EngineOrder
from penstock.engine.threads import prefer_short_spins
from penstock.errors import PenstockError, UserError
from penstock.ipc.server import IpcServer
from penstock.observability.log import configure_logging

if TYPE_CHECKING:
    from penstock.engine.engine import Engine
    from penstock.mock.ceiling import CeilingEngine

_SWITCH_S = 0.001

log = logging.getLogger(__name__)


def main() -> None:
    """Arguments: the address to connect to, and a module to import while the parent prepares the order (or "")."""
    address, preload = sys.argv[1:3]
    # The terminal signals the whole group, a service manager too; the parent alone decides when to stop, after
    # draining. If the parent is gone, standard input says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(address,), name="penstock-parent-watch", daemon=True).start()
    configure_logging(env.log_level(), process="engine")
    prefer_short_spins()
    # Requests arrive by a thread, which gets its turn beside a busy step loop after this long.
    sys.setswitchinterval(_SWITCH_S)
    server = IpcServer(address)
    try:
        code = _serve(server, preload)
    finally:
        server.close()
    sys.stderr.flush()
    os._exit(code)  # skips the destructors of native libraries, which take seconds and may crash; all is released


def _serve(server: IpcServer, preload: str) -> int:
    try:
        server.greet()
        if preload:
            importlib.import_module(preload)
        order = EngineOrder.decode(server.receive_order())
        if order.more_clients:
            server.add_clients(order.more_clients, order.max_open)
        engine = _build(order, server)
    except Exception as error:  # the boundary of the process: the parent tells the user
        if not isinstance(error, UserError):
            log.exception("the engine cannot start")
        server.failed(error)
        return 1
    server.ready(engine.info)
    server.listen(engine, engine.health)
    try:
        engine.run()
    except Exception as error:  # as above
        log.exception("the engine cannot go on")
        server.failed(error if isinstance(error, PenstockError) else RuntimeError(f"The engine stopped: {error}"))
        return 1
    return 0


def _build(order: EngineOrder, server: IpcServer) -> Engine | CeilingEngine:
    if order.mock:
        from penstock.engine.mock_engine import build_ceiling_engine, build_ordered_mock

        if order.mock_order.config.mock_ceiling:
            return build_ceiling_engine(order.config, order.mock_order, server.emit_waiting)
        return build_ordered_mock(order.config, order.mock_order, server)

    from penstock.engine import build

    return build.build_engine(order.config, server, source=order.model_source(), progress=server.progress)


def _exit_with_parent(address: str) -> None:
    """Standard input is a pipe whose other end only the parent holds: it ends when the parent does, however it died.

    The directory of the sockets was the parent's to remove.
    """
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    shutil.rmtree(address, ignore_errors=True)
    os._exit(1)
