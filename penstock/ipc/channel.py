"""The sockets of one engine: two ipc endpoints in a private directory, named by nobody but this process.

The client binds, the engine connects; one endpoint per direction, so that each side can read in one thread and write
in another. What goes to a client waits in queues of BACKLOG_MESSAGES: an engine that is faster than its frontend waits
for it, because otherwise every answer would be late by all that piles up. What goes to the engine is not bounded here:
the engine always reads, and the frontend limits how much is open.
"""

from __future__ import annotations

import contextlib
import threading

import zmq

_WAIT_MS = 500
BACKLOG_MESSAGES = 32
"""Messages, of one step each, that may wait on each side of the way to a client: a pause of the frontend does not stop
the engine's steps, a frontend that is too slow does."""


class Writer:
    """A PUSH socket that several threads may use. Sending never blocks.

    With a ``limit``, at most so many messages wait on this side, and ``send_waiting`` is there to be used.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, bind: bool, limit: int = 0) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, limit)
        self._socket.setsockopt(zmq.SNDTIMEO, _WAIT_MS)
        (self._socket.bind if bind else self._socket.connect)(endpoint)
        # zmq sockets may change threads when a lock orders the uses.
        self._lock = threading.Lock()

    def send(self, data: bytes) -> bool:
        """False when there is nobody to send to, or the socket is closed."""
        with self._lock:
            try:
                self._socket.send(data, zmq.NOBLOCK)
            except zmq.ZMQError:
                return False
        return True

    def has_room(self) -> bool:
        """Whether ``send`` would take a message now: somebody has connected, and does not lag too far behind."""
        with self._lock:
            return not self._socket.closed and bool(self._socket.poll(0, zmq.POLLOUT))

    def send_waiting(self, data: bytes) -> bool:
        """Wait for room, but not for ever: False when there was none for a while, or the socket is closed."""
        with self._lock:
            try:
                self._socket.send(data)
            except zmq.ZMQError:
                return False
        return True

    def close(self, linger_ms: int = 0) -> None:
        with self._lock, contextlib.suppress(zmq.ZMQError):
            self._socket.close(linger=linger_ms)


def make_reader(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, bind: bool, limit: int = 0
) -> zmq.Socket[bytes]:
    """A PULL socket, for use by one thread. ``limit``: most messages that wait on this side; 0 is no limit."""
    socket = context.socket(zmq.PULL)
    socket.setsockopt(zmq.RCVHWM, limit)
    (socket.bind if bind else socket.connect)(endpoint)
    return socket
