"""Messages between a frontend and an engine process, and their bytes (msgpack).

Knows no socket. Every message is a tagged array; the records of ``types`` travel inside as they are, but for the output
of a step: what is one token and nothing else travels in two columns, so that a step costs the reader two strings of
bytes instead of a record per request. Both ends check ``PROTOCOL_VERSION`` in the handshake before anything else, and
refuse to talk to another version.
"""

from __future__ import annotations

from array import array
from typing import TypeVar, get_args

import msgspec

from penstock.types.control import ControlCommand, ControlReply
from penstock.types.decision import Decision
from penstock.types.facts import EngineInfo
from penstock.types.output import EngineStats, OutputBatch, Terminal, TokenColumns, TokenUpdate
from penstock.types.request import GenerateRequest

PROTOCOL_VERSION = 5
REQUEST_ID, TOKEN_ID = "q", "i"  # item codes of the two columns
ID_BYTES = array(REQUEST_ID).itemsize
T = TypeVar("T")


class Hello(msgspec.Struct, tag="hello", array_like=True, frozen=True):
    """Engine to client, first of all. Its first field never changes meaning, in any version."""

    version: int
    pid: int


class Start(msgspec.Struct, tag="start", array_like=True, frozen=True):
    """Client to engine, the answer to Hello. ``order`` says what to build; only ``engine`` reads it."""

    version: int
    order: bytes


class Progress(msgspec.Struct, tag="progress", array_like=True, frozen=True):
    """Engine to client while it starts: one line for a person."""

    text: str


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    info: EngineInfo


class Failed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """Engine to client: the engine's last words, at start or later. ``kind`` is the name of an exception class."""

    kind: str
    message: str
    decision: Decision | None = None


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    """Client to engine: everything that was submitted in one turn of the client's loop."""

    requests: tuple[GenerateRequest, ...]


class Claim(msgspec.Struct, tag="claim", array_like=True, frozen=True):
    """Client to engine, before their Submit: these requests are one to whoever asked. All of them are taken or none."""

    request_ids: tuple[int, ...]


class Abort(msgspec.Struct, tag="abort", array_like=True, frozen=True):
    request_ids: tuple[int, ...]


class Control(msgspec.Struct, tag="control", array_like=True, frozen=True):
    """``command`` is the name of a class of ``types.control``, ``fields`` its encoded fields."""

    call_id: int
    command: str
    fields: msgspec.Raw


class Reply(msgspec.Struct, tag="reply", array_like=True, frozen=True):
    call_id: int
    reply: ControlReply


class Batch(msgspec.Struct, tag="batch", array_like=True, frozen=True):
    """Everything that one step produced. ``request_ids`` and ``token_ids`` are the columns of a TokenColumns.

    A request is in the columns or in ``updates``, not in both. ``made`` is when the engine handed the step over, in
    ``time.monotonic()`` seconds, which all processes of a machine share.
    """

    request_ids: bytes = b""
    token_ids: bytes = b""
    updates: tuple[TokenUpdate, ...] = ()
    terminals: tuple[Terminal, ...] = ()
    stats: EngineStats | None = None
    made: float = 0.0


class Heartbeat(msgspec.Struct, tag="beat", array_like=True, frozen=True):
    """Engine to client, every second: it lives. ``health`` is empty when well."""

    health: str


class Shutdown(msgspec.Struct, tag="shutdown", array_like=True, frozen=True):
    """Client to engine: finish nothing more, release everything, exit."""


class Gone(msgspec.Struct, tag="gone", array_like=True, frozen=True):
    """First client to engine: client number ``index`` is no more. Its requests end, and nobody waits for it."""

    index: int


ToEngine = Start | Claim | Submit | Abort | Control | Shutdown | Gone
ToClient = Hello | Progress | Ready | Failed | Reply | Batch | Heartbeat

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_to_client: msgspec.msgpack.Decoder[ToClient] = msgspec.msgpack.Decoder(ToClient)
_any = msgspec.msgpack.Decoder()
_COMMANDS: dict[str, type[ControlCommand]] = {command.__name__: command for command in get_args(ControlCommand)}


class MessageError(Exception):
    """Bytes that are not a message of this protocol version. Never leaves the ipc package."""


def encode(message: ToEngine | ToClient) -> bytes:
    return _encoder.encode(message)


def decode_for_engine(data: bytes) -> ToEngine:
    """Raises MessageError."""
    return _decode(_to_engine, data)


def decode_for_client(data: bytes) -> ToClient:
    """Raises MessageError."""
    return _decode(_to_client, data)


def handshake_version(data: bytes) -> int | None:
    """The version in a Hello or Start of any protocol version; None when the bytes are neither."""
    try:
        fields = _decode(_any, data)
    except MessageError:
        return None
    is_handshake = isinstance(fields, list) and len(fields) >= 2 and fields[0] in ("hello", "start")
    return fields[1] if is_handshake and isinstance(fields[1], int) else None


def make_batch(batch: OutputBatch, made: float = 0.0) -> Batch:
    """The message of a batch, ``made`` at that moment:
    updates of one token without anything else go into the columns, in their order."""
    if batch.columns is not None:
        columns = batch.columns
        return Batch(columns.request_ids, columns.token_ids, batch.updates, batch.terminals, batch.stats, made)
    ids: list[int] = []
    tokens: list[int] = []
    others: list[TokenUpdate] = []
    for update in batch.updates:
        if len(update.token_ids) == 1 and not update.logprobs and not update.prompt_logprobs:
            ids.append(update.request_id)
            tokens.append(update.token_ids[0])
        else:
            others.append(update)
    if others and not {update.request_id for update in others}.isdisjoint(ids):
        # A request with updates of both kinds: their order would be lost.
        return Batch(updates=batch.updates, terminals=batch.terminals, stats=batch.stats, made=made)
    return Batch(
        array(REQUEST_ID, ids).tobytes(),
        array(TOKEN_ID, tokens).tobytes(),
        tuple(others),
        batch.terminals,
        batch.stats,
        made,
    )


def split_batch(message: Batch, number: int) -> list[Batch]:
    """What each of ``number`` clients hears of a batch: its own requests, whose ids are 1 + its index modulo
    ``number``. Statistics go to all."""
    ids, tokens = read_columns(message)
    columns = [(array(REQUEST_ID), array(TOKEN_ID)) for _ in range(number)]
    for request_id, token_id in zip(ids, tokens, strict=True):
        mine = columns[(request_id - 1) % number]
        mine[0].append(request_id)
        mine[1].append(token_id)
    return [
        Batch(
            columns[index][0].tobytes(),
            columns[index][1].tobytes(),
            tuple(update for update in message.updates if (update.request_id - 1) % number == index),
            tuple(end for end in message.terminals if (end.request_id - 1) % number == index),
            message.stats,
            message.made,
        )
        for index in range(number)
    ]


def read_columns(message: Batch | TokenColumns) -> tuple[array[int], array[int]]:
    """Request ids and token ids. Raises MessageError when they are not two columns of one length."""
    ids, tokens = array(REQUEST_ID), array(TOKEN_ID)
    try:
        ids.frombytes(message.request_ids)
        tokens.frombytes(message.token_ids)
    except ValueError as error:
        raise MessageError(f"columns of a batch: {error}") from None
    if len(ids) != len(tokens):
        raise MessageError(f"columns of a batch: {len(ids)} request ids and {len(tokens)} tokens")
    return ids, tokens


def make_control(call_id: int, command: ControlCommand) -> Control:
    return Control(call_id, type(command).__name__, msgspec.Raw(_encoder.encode(command)))


def control_command(message: Control) -> ControlCommand:
    """The command inside. Raises MessageError for an unknown one."""
    kind = _COMMANDS.get(message.command)
    if kind is None:
        raise MessageError(f"there is no control command {message.command!r}")
    decoder: msgspec.msgpack.Decoder[ControlCommand] = msgspec.msgpack.Decoder(kind)
    return _decode(decoder, bytes(message.fields))


def _decode(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise MessageError(str(error)) from error
