"""More frontend processes on the port of the first one: started, told to drain, missed when they end, never left over.

The first frontend owns the engine and these processes. Each has its own client to the engine and its own socket on the
shared port; a line on its standard input tells it to drain or that the engine has gone, and the end of that input that
the first frontend is no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from penstock.config import env
from penstock.config.sections import EngineConfig, ServerConfig
from penstock.engine.text_assets import make_assets, served_names
from penstock.errors import ConfigError, PenstockError
from penstock.frontend.app import App
from penstock.frontend.peers import Peers
from penstock.frontend.server import make_server, run, settle_memory
from penstock.ipc.channel import BACKLOG_MESSAGES
from penstock.ipc.client import IpcClient
from penstock.ipc.endpoints import PrivateEndpoints
from penstock.observability.log import configure_logging

_BOOT = (
    "import json,sys;sys.path[:]=json.loads(sys.stdin.buffer.readline());"
    "from penstock.engine.frontends import main;main()"
)
_DRAIN, _DEAD = b"drain\n", b"dead "
_GRACE_S = 10.0  # beyond the time for draining; after that a process is killed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendOrder:
    """What one more frontend needs. ``server`` has the port that was bound; ``source`` is that of an EngineOrder, None
    for the mock engine; ``addresses`` are those of all frontends, this one is number ``index``."""

    engine: EngineConfig
    server: ServerConfig
    source: tuple[str, str, str] | None
    addresses: tuple[str, ...]
    index: int
    receive_limit: int = BACKLOG_MESSAGES


class MoreFrontends:
    """All frontends but the first. ``first_address`` is that of its client. For one event loop."""

    def __init__(self, number: int, first_address: str, on_end: Callable[[int, str], None]) -> None:
        """``on_end`` gets the number of its client when a process ends, and a sentence when it was not told to."""
        self._loop = asyncio.get_running_loop()
        self._endpoints = [PrivateEndpoints() for _ in range(number)]
        self.addresses = (first_address, *(endpoints.address for endpoints in self._endpoints))
        self._children: list[subprocess.Popen[bytes]] = []
        self._ready = [self._loop.create_future() for _ in range(number)]
        self._ended = [asyncio.Event() for _ in range(number)]
        self._on_end = on_end
        self._draining = False

    def start(
        self,
        engine: EngineConfig,
        server: ServerConfig,
        source: tuple[str, str, str] | None,
        receive_limit: int,
    ) -> None:
        for index in range(1, len(self.addresses)):
            order = FrontendOrder(
                engine=engine,
                server=server,
                source=source,
                addresses=self.addresses,
                index=index,
                receive_limit=receive_limit,
            )
            child = subprocess.Popen([sys.executable, "-c", _BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._children.append(child)
            encoded = msgspec.msgpack.encode(order)
            _tell(child, json.dumps(sys.path).encode() + b"\n" + b"%d\n" % len(encoded) + encoded)
            threading.Thread(target=self._watch, args=(child, index - 1), daemon=True).start()

    async def ready(self) -> None:
        """Wait until all of them answer. Raises ConfigError when one cannot."""
        await asyncio.gather(*self._ready)

    @property
    def running(self) -> bool:
        return not all(ended.is_set() for ended in self._ended[: len(self._children)])

    def drain(self, forced: bool = False) -> None:
        """``forced``: end at once instead."""
        self._draining = True
        for child in self._children:
            if forced:
                child.kill()
            else:
                _tell(child, _DRAIN)

    def engine_died(self, sentence: str) -> None:
        for child in self._children:
            _tell(child, _DEAD + sentence.replace("\n", " ").encode() + b"\n")

    async def close(self, drain_timeout: float) -> None:
        """Wait for their end, not for ever, and release what they used."""
        if not self._draining:
            self.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout + _GRACE_S):
                for ended in self._ended[: len(self._children)]:
                    await ended.wait()
        for child in self._children:
            child.kill()
            with contextlib.suppress(BrokenPipeError):
                if child.stdin is not None:
                    child.stdin.close()
        for ready in self._ready:
            ready.cancel()
        for endpoints in self._endpoints:
            endpoints.remove()

    def _watch(self, child: subprocess.Popen[bytes], place: int) -> None:
        assert child.stdout is not None
        with child.stdout:
            word = child.stdout.readline()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._on_word, place, word)
        code = child.wait()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_exit, place, code)

    def _on_word(self, place: int, word: bytes) -> None:
        ready = self._ready[place]
        if ready.done() or self._draining:
            return
        if word == b"ready\n":
            ready.set_result(None)
        else:
            told = word.decode(errors="replace").strip() or "it ended before it was ready"
            ready.set_exception(ConfigError(f"A frontend process cannot start: {told}"))
            ready.exception()  # seen: the start may have failed for another reason

    def _on_exit(self, place: int, code: int) -> None:
        self._ended[place].set()
        self._on_end(place + 1, "" if self._draining else f"Frontend process {place + 2} ended with code {code}.")


def _tell(child: subprocess.Popen[bytes], line: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended: the watcher says so
        assert child.stdin is not None
        child.stdin.write(line)
        child.stdin.flush()


def main() -> None:
    """A child of ``MoreFrontends``."""
    # The first frontend alone decides when to stop: a terminal signals the whole group, and so does a service manager.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    source = sys.stdin.buffer
    order = msgspec.msgpack.decode(source.read(int(source.readline())), type=FrontendOrder)
    configure_logging(env.log_level(), process=f"frontend {order.index + 1}")
    code = 0
    try:
        run(_serve(order))
    except PenstockError as error:
        _say(str(error).partition("\n")[0])
        code = 1
    sys.stderr.flush()
    os._exit(code)  # a thread still reads standard input, which an orderly exit would wait for


def _say(word: str) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.write(word + "\n")
        sys.stdout.flush()


async def _serve(order: FrontendOrder) -> None:
    loop = asyncio.get_running_loop()
    client = IpcClient(
        endpoints=PrivateEndpoints(order.addresses[order.index]),
        index=order.index,
        num_clients=len(order.addresses),
        receive_limit=order.receive_limit,
    )
    app = App(order.server)
    server = make_server(app, order.server, handles_signals=False)
    peers = Peers(order.addresses, order.index)
    serving: asyncio.Task[None] | None = None

    def drain() -> None:
        if not server.has_begun:  # nobody waits for an answer from here
            os._exit(0)
        server.request_stop()

    try:
        threading.Thread(target=_listen, args=(loop, client, drain), daemon=True).start()
        assets = await asyncio.to_thread(make_assets, order.engine, order.source)
        await client.attach()
        app.attach(client, assets, served_names(order.engine, order.source), peers)
        assert app.service is not None
        await peers.listen(app.service.snapshot)
        # Bound only now: the system would give this process connections from the moment it listens.
        serving = asyncio.create_task(server.serve_bound())
        await asyncio.wait((serving,), timeout=0)
        settle_memory()
        _say("ready")
        await serving
    finally:
        peers.close()
        await client.close()


def _listen(loop: asyncio.AbstractEventLoop, client: IpcClient, drain: Callable[[], None]) -> None:
    """What the first frontend says. It holds the other end: when that is gone, so is it, however it died."""
    for line in sys.stdin.buffer:
        if line == _DRAIN:
            drain()
        elif line.startswith(_DEAD):
            sentence = line[len(_DEAD) :].decode().strip()
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(client.engine_exited, sentence)
    os._exit(1)
