"""The engine's end: an output channel for the core, and a thread that feeds what arrives into an inbox.

Knows neither core nor executor: the composition root hands over an ``EngineInbox``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import zmq

from penstock.errors import EngineDeadError, NoBackendError
from penstock.ipc import codec
from penstock.ipc.channel import BACKLOG_MESSAGES, Writer, make_reader
from penstock.ipc.endpoints import to_client, to_engine
from penstock.types.control import ControlCommand, ControlReply
from penstock.types.facts import EngineInfo
from penstock.types.output import FailureKind, FinishReason, OutputBatch, Terminal
from penstock.types.request import GenerateRequest

HEARTBEAT_S = 1.0
WAITING_MESSAGES = 16
_ROOM_S = 0.0005
"""Seconds between two looks for room in a client's queue."""

log = logging.getLogger(__name__)


class EngineInbox(Protocol):
    """Where requests enter an engine. Every method returns at once and may be called from any thread."""

    def submit(self, request: GenerateRequest) -> None: ...

    def abort(self, request_ids: Sequence[int]) -> None: ...

    def control(self, command: ControlCommand, reply: Callable[[ControlReply], None]) -> None: ...

    def stop(self) -> None: ...


class IpcServer:
    """Order of calls: ``greet``, ``receive_order``, ``add_clients`` if there are more, ``progress`` as wanted,
    ``ready`` or ``failed``, then ``listen`` and any number of ``emit`` (from one or more threads), last ``close``.

    With several clients a request belongs to the one whose number its id has, counted around: (id - 1) modulo their
    number. The limit on open requests of all of them together is kept here, where all of them are seen. What they claim
    in one message is taken together or refused together.
    """

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reader = make_reader(self._context, to_engine(address), bind=False)
        self._writers = [self._make_writer(address)]
        self._addresses = [address]
        self._waiting_writers: list[Writer] = []
        self._open: set[int] = set()  # requests of several clients
        self._claimed: dict[int, bool] = {}  # requests that are to come, and whether they are taken
        self._gone: set[int] = set()  # numbers of clients that are no more
        self._max_open = 0
        self._thread: threading.Thread | None = None
        self._closing = False

    def greet(self) -> None:
        """Say Hello. The client may answer while this process imports what it will need."""
        self._send(codec.Hello(codec.PROTOCOL_VERSION, os.getpid()))

    def receive_order(self) -> bytes:
        """Block until the client has answered. Raises EngineDeadError for a client of another version."""
        data = self._reader.recv()
        version = codec.handshake_version(data)
        if version != codec.PROTOCOL_VERSION:
            raise EngineDeadError(
                f"The engine speaks version {codec.PROTOCOL_VERSION} of the protocol and was started by version "
                f"{version}: two installations of Penstock are mixed."
            )
        message = codec.decode_for_engine(data)
        assert isinstance(message, codec.Start)
        return message.order

    def add_clients(self, addresses: Sequence[str], max_open: int) -> None:
        """More frontends, which wait for ``ready``. ``max_open`` requests of all clients may be open; 0 is no limit."""
        for address in addresses:
            self._reader.connect(to_engine(address))
            self._writers.append(self._make_writer(address))
            self._addresses.append(address)
        self._max_open = max_open
        hello = codec.encode(codec.Hello(codec.PROTOCOL_VERSION, os.getpid()))
        for writer in self._writers[1:]:
            writer.send_waiting(hello)

    def progress(self, text: str) -> None:
        self._send(codec.Progress(text))

    def ready(self, info: EngineInfo) -> None:
        self._send(codec.Ready(info))

    def failed(self, error: Exception) -> None:
        """The engine's last words: why it cannot start, or cannot go on."""
        decision = error.decision if isinstance(error, NoBackendError) else None
        self._send(codec.Failed(type(error).__name__, str(error), decision))

    def emit(self, batch: OutputBatch) -> None:
        """core.ports.OutputChannel. Waits while a client is too far behind, until the end: one that has stopped for
        good stops the engine, and is gone when its process is."""
        for index, message in enumerate(self._messages(batch)):
            self._put(index, codec.encode(message))

    def _make_writer(self, address: str) -> Writer:
        return Writer(self._context, to_client(address), bind=False, limit=BACKLOG_MESSAGES)

    def _put(self, index: int, data: bytes) -> None:
        """In small steps, so that other threads may send in between."""
        while index not in self._gone and not self._writers[index].send(data) and not self._closing:
            time.sleep(_ROOM_S)

    def emit_waiting(self, batch: OutputBatch) -> None:
        """The same through queues of a few messages: waits while a client is behind, until the end. For one thread; the
        order against ``emit`` is open."""
        if not self._waiting_writers:
            self._waiting_writers = [
                Writer(self._context, to_client(address), bind=False, limit=WAITING_MESSAGES)
                for address in self._addresses
            ]
        for index, message in enumerate(self._messages(batch)):
            data = codec.encode(message)
            while index not in self._gone and not self._waiting_writers[index].send_waiting(data):
                if self._closing:
                    return

    def _messages(self, batch: OutputBatch) -> Sequence[codec.Batch]:
        """What each client hears of a batch."""
        message = codec.make_batch(batch, time.monotonic())
        if len(self._writers) == 1:
            return (message,)
        self._open.difference_update([end.request_id for end in batch.terminals])
        return codec.split_batch(message, len(self._writers))

    def listen(self, inbox: EngineInbox, health: Callable[[], str]) -> None:
        """Start the thread that feeds the inbox and sends heartbeats."""
        self._thread = threading.Thread(target=self._run, args=(inbox, health), name="penstock-ipc", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop reading, and send what is still queued, for two seconds at most."""
        self._closing = True
        if self._thread is None:
            self._reader.close(linger=0)
        else:
            self._thread.join(2 * HEARTBEAT_S)
        for index, writer in enumerate(self._writers):
            writer.close(linger_ms=0 if index in self._gone else 2000)
        for writer in self._waiting_writers:
            writer.close()
        if self._reader.closed:
            self._context.term()

    def _send(self, message: codec.ToClient) -> None:
        data = codec.encode(message)
        for index in range(len(self._writers)):
            self._put(index, data)

    def _reply(self, call_id: int, reply: ControlReply) -> None:
        self._put(self._client_of(call_id), codec.encode(codec.Reply(call_id, reply)))

    def _client_of(self, number: int) -> int:
        """The index of the client that has made this number for a request or a call."""
        return (number - 1) % len(self._writers)

    def _take(self, request_ids: Sequence[int]) -> bool:
        """Count all of these as open, or none when they would be too many. As in a frontend that is alone, those that
        are more than the limit by themselves are taken when nothing is open, so that they are not refused for ever."""
        if self._max_open and self._open and len(self._open) + len(request_ids) > self._max_open:
            return False
        self._open.update(request_ids)
        return True

    def _submit(self, request: GenerateRequest, inbox: EngineInbox) -> None:
        request_id = request.request_id
        if len(self._writers) > 1:
            taken = self._claimed.pop(request_id, None)
            if taken is None:
                taken = self._take((request_id,))
            if not taken:
                told = (
                    f"The queue is full: {len(self._open)} sequences are open, and the limit is {self._max_open} "
                    "(--max-queue). Try again later."
                )
                end = Terminal(request_id, FinishReason.ERROR, FailureKind.OVERLOADED, told)
                self.emit(OutputBatch(terminals=(end,)))
                return
        inbox.submit(request)

    def _unclaim(self, request_ids: Iterable[int]) -> None:
        """What has not come by now does not come."""
        for request_id in request_ids:
            if self._claimed.pop(request_id, False):
                self._open.discard(request_id)

    def _run(self, inbox: EngineInbox, health: Callable[[], str]) -> None:
        next_beat = 0.0
        with contextlib.closing(self._reader):
            while not self._closing:
                now = time.monotonic()
                if now >= next_beat:
                    beat = codec.encode(codec.Heartbeat(health()))
                    for writer in self._writers:  # a full queue is as good as a sign of life
                        writer.send(beat)
                    next_beat = now + HEARTBEAT_S
                if self._reader.poll(int(1000 * max(0.0, next_beat - now)) + 1):
                    self._receive(self._reader.recv(), inbox)

    def _receive(self, data: bytes, inbox: EngineInbox) -> None:
        try:
            self._dispatch(codec.decode_for_engine(data), inbox)
        except Exception:  # one message must not end the thread that all others arrive by
            log.exception("a message to the engine could not be handled")

    def _dispatch(self, message: codec.ToEngine, inbox: EngineInbox) -> None:
        match message:
            case codec.Claim(request_ids=request_ids):
                self._claimed.update(dict.fromkeys(request_ids, self._take(request_ids)))
            case codec.Submit(requests=requests):
                for request in requests:
                    self._submit(request, inbox)
            case codec.Abort(request_ids=request_ids):
                self._unclaim(request_ids)
                inbox.abort(request_ids)
            case codec.Control(call_id=call_id):
                self._control(call_id, message, inbox)
            case codec.Gone(index=index):
                self._gone.add(index)
                self._unclaim([one for one in self._claimed if self._client_of(one) == index])
                inbox.abort([one for one in tuple(self._open) if self._client_of(one) == index])
            case codec.Shutdown():
                self._closing = True
                inbox.stop()
            case codec.Start():
                log.warning("a second Start message was ignored")

    def _control(self, call_id: int, message: codec.Control, inbox: EngineInbox) -> None:
        try:
            command = codec.control_command(message)
        except codec.MessageError as error:
            self._reply(call_id, ControlReply(ok=False, message=f"The engine does not understand: {error}"))
            return
        inbox.control(command, lambda reply: self._reply(call_id, reply))
