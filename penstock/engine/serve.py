"""``penstock serve``: an engine process, the HTTP frontend in this one, and one orderly end for both.

The socket is bound first, so that a taken port is known before a model is loaded, and health routes answer while the
engine starts (ready says 503 until it has). The engine process imports torch while this one reads the tokenizer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.config.sections import EngineConfig, ServerConfig
from penstock.engine.build import find_model, load_assets, mock_assets
from penstock.engine.mock_engine import MOCK_NAME
from penstock.engine.process import EngineOrder
from penstock.engine.spawn import EngineProcess
from penstock.errors import EngineDeadError
from penstock.frontend.app import App
from penstock.frontend.server import DrainingServer, make_server, run
from penstock.frontend.text.load import TextAssets

if TYPE_CHECKING:
    from penstock.loader.sources import ModelSource

Announce = Callable[[str, str], None]
"""Called once with the server's URL and the model's shown name, when requests are welcome."""

log = logging.getLogger(__name__)


def run_server(
    engine_config: EngineConfig, server_config: ServerConfig, *, mock: bool = False, announce: Announce | None = None
) -> None:
    """Serve until SIGINT or SIGTERM, then drain, stop the engine and return. Blocks; call from the main thread.

    Raises the UserError that prevents the start, and EngineDeadError when the engine could not start for another
    reason or died while it served. A server whose engine has died keeps answering: its health routes say so.
    """
    source = None if mock else find_model(engine_config, log.info)
    run(_serve(engine_config, server_config, source, announce or (lambda _url, _name: None)))


def served_names(config: EngineConfig, source: ModelSource | None) -> tuple[str, ...]:
    """Names that requests may use: those the user gave, or the source's own and what the user called it."""
    if config.model.served_model_name:
        return config.model.served_model_name
    if source is None:
        return (MOCK_NAME,)
    asked = config.model.model
    is_path = Path(asked).expanduser().exists()
    return tuple(dict.fromkeys((source.name,) if is_path else (source.name, asked)))


async def _serve(
    engine_config: EngineConfig, server_config: ServerConfig, source: ModelSource | None, announce: Announce
) -> None:
    app = App(server_config)
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = make_server(app, server_config, on_ready=lambda host, port: listening.set_result(_url(host, port)))
    serving = asyncio.create_task(server.serve_bound())
    await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
    if not listening.done():
        await serving  # raises why it cannot listen
        return
    engine = EngineProcess(preload="torch" if source else "", on_progress=log.info)
    starting = asyncio.create_task(_start(app, engine, engine_config, source))
    try:
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await _stop_on_failure(starting, server, serving)
            announce(listening.result(), served_names(engine_config, source)[0])
        await serving
    finally:
        starting.cancel()
        await asyncio.wait((starting,))
        died = starting.done() and not starting.cancelled() and not starting.exception() and engine.client.health()
        await engine.client.close()
    if died:
        raise EngineDeadError(died)


async def _start(app: App, engine: EngineProcess, config: EngineConfig, source: ModelSource | None) -> None:
    """Load text here and the model there, at the same time; then open the application."""
    place = (source.name, source.kind, str(source.path)) if source else None
    order = EngineOrder(config=config, source=place, mock=source is None)
    ready = asyncio.create_task(engine.client.start(order.encode()))
    try:
        assets = await asyncio.to_thread(_assets, config, source)
        await ready
    except BaseException:
        ready.cancel()
        await asyncio.wait((ready,))
        raise
    app.attach(engine.client, assets, served_names(config, source))


def _assets(config: EngineConfig, source: ModelSource | None) -> TextAssets:
    return load_assets(config, source) if source else mock_assets()


async def _stop_on_failure(starting: asyncio.Task[None], server: DrainingServer, serving: asyncio.Task[None]) -> None:
    """Raise the start's error, after the socket has been closed."""
    if starting.exception() is not None:
        server.request_stop()
        await serving
        await starting


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
