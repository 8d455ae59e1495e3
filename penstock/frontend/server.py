"""Runs the application on a socket until it is told to stop, and then drains it.

Does not know what the application serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from penstock.config.sections import ServerConfig
from penstock.errors import ConfigError
from penstock.frontend.openai.errors import HttpError
from penstock.frontend.protocol import HttpConnection, Starter

if TYPE_CHECKING:
    from penstock.frontend.app import App

_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CLOSE_TIMEOUT_S = 5
_BACKLOG = 2048
_GC_THRESHOLDS = (20_000, 20, 20)
_ACCEPTS_PER_TURN = 256
_ACCEPT_PAUSE_S = 1.0
_IDLE_SHARE = 32
"""One in so many connections is closed at a time when there are too many: looking for idle ones looks at all."""
_MAX_REFUSED = 256
"""Connections above the limit that are told so; more are closed without a word."""
_SPARE_DESCRIPTORS = 512
"""Files that a process may have open besides its connections."""

OnReady = Callable[[str, int], None]
"""Called once with the host and the port, when connections are accepted."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end on uvloop where it is installed."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The fastest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def settle_memory() -> None:
    """Tell the garbage collector that what is there now stays: call it when the server is ready.

    Modules, tables and templates are hundreds of thousands of objects. Walking them took tens of milliseconds, and came
    when requests did, because those are what allocates. Almost everything that a request leaves is freed by counting;
    what is left to the collector is little, so that it need not look as often as it does by default.
    """
    gc.collect()
    gc.freeze()
    gc.enable()  # a start may have turned it off
    gc.set_threshold(*_GC_THRESHOLDS)


def make_server(
    app: App,
    server: ServerConfig,
    *,
    on_ready: OnReady | None = None,
    on_drain: Callable[[bool], None] = lambda _forced: None,
    others_drain: Callable[[], bool] = lambda: False,
    handles_signals: bool = True,
) -> DrainingServer:
    """A server that is not running yet: tests drive it on a thread and call ``request_stop``.

    ``on_drain`` is called with False when it begins to drain, and with True when it is to end at once. The drain also
    waits while ``others_drain()``. Without ``handles_signals`` somebody else decides when to stop.
    """
    return DrainingServer(app, server, on_ready, on_drain, others_drain, handles_signals)


class DrainingServer:
    """Accepts connections until it is told to stop, then drains.

    The first SIGINT or SIGTERM drains: new work gets 503, open requests and unread answers get ``drain_timeout``
    seconds. The second ends at once.
    """

    def __init__(
        self,
        app: App,
        server: ServerConfig,
        on_ready: OnReady | None,
        on_drain: Callable[[bool], None],
        others_drain: Callable[[], bool],
        handles_signals: bool,
    ) -> None:
        self._on_drain = on_drain
        self._others_drain = others_drain
        self._handles_signals = handles_signals
        self._app = app
        self._server = server
        self._max_connections = min(server.max_connections, _descriptors() - _SPARE_DESCRIPTORS)
        self._on_ready = on_ready
        self._starter: Starter | None = None
        self._drain_task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._drained = asyncio.Event()
        self._forced = asyncio.Event()

    @property
    def has_begun(self) -> bool:
        return self._loop is not None

    async def serve_bound(self) -> None:
        """Bind, serve, drain, close. Returns after the end, so that the caller can stop the engine.

        Raises ConfigError when the address cannot be taken.
        """
        loop = self._loop = asyncio.get_running_loop()
        shared = self._server.frontends > 1
        if shared and self._handles_signals:
            # Sharing would also let in a second server of this user, and each would get some of the other's requests.
            bind(self._server.host, self._server.port).close()
        listener = bind(self._server.host, self._server.port, shared=shared)
        try:
            self._starter = Starter(self._app, loop, self._server, self._app.on_turn)
            listener.listen(_BACKLOG)
            loop.add_reader(listener.fileno(), self._accept, listener)
            with self._signals():
                if self._on_ready is not None:
                    self._on_ready(self._server.host, listener.getsockname()[1])
                await self._drained.wait()
                loop.remove_reader(listener.fileno())
                listener.close()
                await self._close_connections()
        finally:
            if listener.fileno() >= 0:
                loop.remove_reader(listener.fileno())
            listener.close()
            self._app.close()

    def _accept(self, listener: socket.socket) -> None:
        """Take what has connected. The loop's own server takes one connection a turn: a thousand clients that come at
        once would wait for a thousand turns, each of which may write to all streams that are open."""
        assert self._loop is not None
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                client, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors left, say: the rest stays in the backlog
                _LOG.error("a connection cannot be accepted: %s", error)
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(_ACCEPT_PAUSE_S, self._accept_again, listener)
                return
            if self._num_connections >= self._max_connections + _MAX_REFUSED:
                client.close()
                continue
            assert self._starter is not None
            self._starter.num_coming += 1
            task = self._loop.create_task(self._connect(client))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _accept_again(self, listener: socket.socket) -> None:
        if self._loop is not None and listener.fileno() >= 0 and not self._drained.is_set():
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    @property
    def _num_connections(self) -> int:
        starter = self._starter
        return starter.num_coming + len(starter.connections) if starter is not None else 0

    def _make_room(self) -> HttpError | None:
        """Close idle connections where there are too many; what to tell the new one when none is idle.

        Asked when a connection begins: those that came in the same turn before it have begun, and may be idle, too.
        """
        assert self._starter is not None
        if len(self._starter.connections) < self._max_connections:
            return None
        if self._starter.close_idle(max(1, self._max_connections // _IDLE_SHARE)):
            return None
        return HttpError(
            503,
            f"The server has its limit of {self._max_connections} connections (--max-connections). Try again later.",
            code="too_many_connections",
        )

    async def _connect(self, client: socket.socket) -> None:
        starter = self._starter
        assert starter is not None
        try:
            client.setblocking(False)
            with contextlib.suppress(OSError):  # a socket of another kind than TCP
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await starter.loop.connect_accepted_socket(lambda: HttpConnection(starter, self._make_room), client)
        except OSError as error:  # it has gone already
            _LOG.debug("a connection ended before it began: %s", error)
            starter.num_coming -= 1
            client.close()

    async def _close_connections(self) -> None:
        """Idle ones at once, the others after their answer, those that take too long in the midst of it."""
        assert self._starter is not None
        connections = self._starter.connections
        for connection in tuple(connections):
            connection.finish()
        end = time.monotonic() + _CLOSE_TIMEOUT_S
        while connections and not self._forced.is_set() and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for connection in tuple(connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # connection_lost of those

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if not self._handles_signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler; runs between any two instructions, so it only hands over to the loop."""
        self.request_stop()

    def request_stop(self) -> None:
        """Begin to drain; called again, end at once. May be called from any thread, also after the end."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended already
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        forced = self._drain_task is not None
        self._on_drain(forced)
        if forced:
            self._forced.set()
            self._drained.set()
            return
        _LOG.info("draining: %d sequences open", self._app.admission.num_open)
        self._drain_task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            await self._app.drain(self._is_answering)
        finally:
            self._drained.set()

    def _is_answering(self) -> bool:
        connections = self._starter.connections if self._starter is not None else ()
        return self._others_drain() or any(one.is_answering for one in connections)


def _descriptors() -> int:
    """How many files this process may have open, after asking for as many as it may ask for."""
    try:
        import resource
    except ImportError:  # a system without such a limit
        return sys.maxsize
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft, 2 * _SPARE_DESCRIPTORS)


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound TCP socket; ``shared`` with other processes of this user that ask for the same, among which the system
    spreads connections. Raises ConfigError with what to do when the address cannot be taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"The host {host!r} is not an address of this machine: {error}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise ConfigError("Leave out --frontends: this system cannot share a port among processes.")
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror}.\n\nChoose another port with --port; 0 takes a free one."
        ) from None
    listener.setblocking(False)
    return listener
