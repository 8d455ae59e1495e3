"""An engine process, the HTTP frontend in this one, and one orderly end for both.

The socket is bound first, so that a taken port is known before a model is loaded, and health routes answer while the
engine starts (ready says 503 until it has). What only requests need (dialects, templates, the tokenizer) is imported
and read after that, on a thread, while the engine process prepares itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.config.sections import EngineConfig, MockConfig, ServerConfig
from penstock.engine.launch import EngineChild
from penstock.engine.order import EngineOrder
from penstock.engine.spawn import EngineProcess
from penstock.engine.text_assets import Place, make_assets, served_names
from penstock.errors import EngineDeadError
from penstock.frontend.app import App
from penstock.frontend.peers import Peers
from penstock.frontend.server import DrainingServer, make_server, run, settle_memory
from penstock.ipc.channel import BACKLOG_MESSAGES
from penstock.mock.specs import check_mock

if TYPE_CHECKING:
    from penstock.engine.frontends import MoreFrontends
    from penstock.loader.sources import ModelSource

Announce = Callable[[str, str], None]
"""Called once with the server's URL and the model's shown name, when requests are welcome."""

CEILING_MESSAGES = 32
"""Steps of a ceiling engine that may wait to be read; it waits then itself."""

log = logging.getLogger(__name__)


def serve_beside(
    child: EngineChild,
    engine_config: EngineConfig,
    server_config: ServerConfig,
    mock: MockConfig | None,
    announce: Announce,
) -> None:
    """``serve.run_server`` with an engine process that has been started, and that the caller abandons."""
    source = None
    if mock is None:
        # With it comes the core, which the frontend of a mock engine does not need.
        from penstock.engine.build import find_model

        source = find_model(engine_config, log.info)
    else:
        check_mock(mock)
    run(_serve(child, engine_config, server_config, source, mock, announce))


async def _serve(
    child: EngineChild,
    engine_config: EngineConfig,
    server_config: ServerConfig,
    source: ModelSource | None,
    mock: MockConfig | None,
    announce: Announce,
) -> None:
    app = App(server_config)
    listening: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    others: MoreFrontends | None = None
    lost: list[str] = []

    def on_end(index: int, sentence: str) -> None:
        if engine.client.ready:  # before, it expects its order and nothing else
            engine.client.client_gone(index)
        if sentence:
            lost.append(f"{sentence} The server stops, because its requests are lost.")
            server.request_stop()

    server = make_server(
        app,
        server_config,
        on_ready=lambda host, port: listening.set_result((_url(host, port), port)),
        on_drain=lambda forced: others.drain(forced) if others is not None else None,
        others_drain=lambda: others is not None and others.running,
    )
    serving = asyncio.create_task(server.serve_bound())
    await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
    if not listening.done():
        await serving  # raises why it cannot listen
        return
    url, port = listening.result()
    place = (source.name, source.kind, str(source.path)) if source else None
    limit = CEILING_MESSAGES if mock is not None and mock.mock_ceiling else BACKLOG_MESSAGES
    engine = EngineProcess(
        child=child,
        on_progress=log.info,
        receive_limit=limit,
        num_clients=server_config.frontends,
    )
    if server_config.frontends > 1:
        from penstock.engine.frontends import MoreFrontends

        others = MoreFrontends(server_config.frontends - 1, engine.client.address, on_end)
        engine.on_exit = others.engine_died
        others.start(engine_config, replace(server_config, port=port), place, limit)
    starting = asyncio.create_task(_start(app, engine, engine_config, place, mock, others))
    try:
        await asyncio.wait((serving, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await _stop_on_failure(starting, server, serving)
            settle_memory()
            announce(url, served_names(engine_config, place)[0])
        await serving
    finally:
        starting.cancel()
        await asyncio.wait((starting,))
        died = starting.done() and not starting.cancelled() and not starting.exception() and engine.client.health()
        if others is not None:
            await others.close(server_config.drain_timeout if not died else 0.0)
        await engine.client.close()
        if app.service is not None and app.service.peers is not None:
            app.service.peers.close()
    if died or lost:
        raise EngineDeadError(died or lost[0])


async def _start(
    app: App,
    engine: EngineProcess,
    config: EngineConfig,
    place: Place,
    mock: MockConfig | None,
    others: MoreFrontends | None,
) -> None:
    """Load text here and the model there, at the same time; then open the application. A mock engine is told about the
    text, and loads nothing."""
    more = others.addresses[1:] if others is not None else ()
    order = EngineOrder(config=config, source=place, more_clients=more, max_open=app.server.max_queue if more else 0)
    if place is None:
        assets = await asyncio.to_thread(make_assets, config, place)
        from penstock.engine.mock_text import mock_order

        mocked = mock_order(mock or MockConfig(), assets)
        await engine.client.start(replace(order, mock=True, mock_order=mocked).encode())
    else:
        ready = asyncio.create_task(engine.client.start(order.encode()))
        try:
            assets = await asyncio.to_thread(make_assets, config, place)
            await ready
        except BaseException:
            ready.cancel()
            await asyncio.wait((ready,))
            raise
    peers = Peers(others.addresses, 0) if others is not None else None
    app.attach(engine.client, assets, served_names(config, place), peers)
    if others is not None and peers is not None and app.service is not None:
        await peers.listen(app.service.snapshot)
        await others.ready()


async def _stop_on_failure(starting: asyncio.Task[None], server: DrainingServer, serving: asyncio.Task[None]) -> None:
    """Raise the start's error, after the socket has been closed."""
    if starting.exception() is not None:
        server.request_stop()
        await serving
        await starting


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"
