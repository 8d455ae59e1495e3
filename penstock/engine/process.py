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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from penstock.config import env
from penstock.config.sections import EngineConfig
from penstock.engine.threads import prefer_short_spins
from penstock.errors import PenstockError, UserError
from penstock.ipc.server import IpcServer
from penstock.mock.specs import MockOrder
from penstock.observability.log import configure_logging

if TYPE_CHECKING:
    from penstock.engine.engine import Engine
    from penstock.loader.sources import ModelSource
    from penstock.mock.ceiling import CeilingEngine

_SWITCH_S = 0.001

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOrder:
    """What the parent wants built. ``source`` is what the parent found for ``config.model.model``: (name, kind, path)
    of a ``loader.sources.ModelSource``; None lets the engine process look for itself."""

    config: EngineConfig = field(default_factory=EngineConfig)
    source: tuple[str, str, str] | None = None
    mock: bool = False
    mock_order: MockOrder = field(default_factory=MockOrder)
    more_clients: tuple[str, ...] = ()  # addresses of other frontends than the one that orders
    max_open: int = 0  # requests of all frontends together; 0: each counts its own

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def model_source(self) -> ModelSource | None:
        from penstock.loader.sources import ModelSource

        if self.source is None:
            return None
        name, kind, path = self.source
        return ModelSource(name, kind, Path(path))

    @classmethod
    def decode(cls, data: bytes) -> EngineOrder:
        return msgspec.msgpack.decode(data, type=cls)


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
