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

from penstock.config.sections import EngineConfig, MockConfig, ServerConfig
from penstock.engine.mock_text import MOCK_NAME, mock_assets, mock_order
from penstock.engine.process import EngineOrder
from penstock.engine.spawn import EngineProcess
from penstock.errors import EngineDeadError
from penstock.frontend.app import App
from penstock.frontend.server import DrainingServer, make_server, run, settle_memory
from penstock.mock.specs import MockOrder

if TYPE_CHECKING:
    from penstock.loader.sources import ModelSource

Announce = Callable[[str, str], None]
"""Called once with the server's URL and the model's shown name, when requests are welcome."""

CEILING_MESSAGES = 32
"""Steps of a ceiling engine that may wait to be read; it waits then itself."""

log = logging.getLogger(__name__)


def run_server(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    *,
    mock: MockConfig | None = None,
    announce: Announce | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then drain, stop the engine and return. Blocks; call from the main thread.

    Raises the UserError that prevents the start, and EngineDeadError when the engine could not start for another
    reason or died while it served. A server whose engine has died keeps answering: its health routes say so.
    """
    source = None
    if mock is None:
        from penstock.engine.build import find_model  # a core and what it needs, which a mock engine's frontend does not

        source = find_model(engine_config, log.info)
    MockOrder(config=mock or MockConfig()).check()
    run(_serve(engine_config, server_config, source, mock, announce or (lambda _url, _name: None)))


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
    engine_config: EngineConfig,
    server_config: ServerConfig,
    source: ModelSource | None,
    mock: MockConfig | None,
    announce: Announce,
) -> None:
    app = App(server_config)
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = make_server(app, server_config, on_ready=lambda host, port: listening.set_result(_url(host, port)))
    serving = asyncio.create_task(server.serve_bound())
    await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
    if not listening.done():
        await serving  # raises why it cannot listen
        return
    limit = CEILING_MESSAGES if mock is not None and mock.mock_ceiling else 0
    engine = EngineProcess(preload="torch" if source else "", on_progress=log.info, receive_limit=limit)
    starting = asyncio.create_task(_start(app, engine, engine_config, source, mock))
    try:
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await _stop_on_failure(starting, server, serving)
            settle_memory()
            announce(listening.result(), served_names(engine_config, source)[0])
        await serving
    finally:
        starting.cancel()
        await asyncio.wait((starting,))
        died = starting.done() and not starting.cancelled() and not starting.exception() and engine.client.health()
        await engine.client.close()
    if died:
        raise EngineDeadError(died)


async def _start(
    app: App, engine: EngineProcess, config: EngineConfig, source: ModelSource | None, mock: MockConfig | None
) -> None:
    """Load text here and the model there, at the same time; then open the application. A mock engine is told about the
    text, and loads nothing."""
    if source is None:
        assets = await asyncio.to_thread(mock_assets, config)
        mocked = mock_order(mock or MockConfig(), assets)
        await engine.client.start(EngineOrder(config=config, mock=True, mock_order=mocked).encode())
        app.attach(engine.client, assets, served_names(config, source))
        return
    from penstock.engine.build import load_assets

    place = (source.name, source.kind, str(source.path))
    ready = asyncio.create_task(engine.client.start(EngineOrder(config=config, source=place).encode()))
    try:
        assets = await asyncio.to_thread(load_assets, config, source)
        await ready
    except BaseException:
        ready.cancel()
        await asyncio.wait((ready,))
        raise
    app.attach(engine.client, assets, served_names(config, source))


async def _stop_on_failure(starting: asyncio.Task[None], server: DrainingServer, serving: asyncio.Task[None]) -> None:
    """Raise the start's error, after the socket has been closed."""
    if starting.exception() is not None:
        server.request_stop()
        await serving
        await starting


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
