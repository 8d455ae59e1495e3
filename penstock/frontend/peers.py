"""What several frontend processes of one server tell each other: counts, so that any of them can answer for all.

Each listens on a Unix socket in a directory that only this user can enter, and asks the others when somebody asks it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from penstock.frontend.openai.errors import HttpError
from penstock.observability.metrics import Counts

_SOCKET = "frontend"
_PATIENCE_S = 2.0
_LENGTH_BYTES = 4


class Snapshot(msgspec.Struct, array_like=True):
    """The counts of one process. ``counts`` is what a MetricSet answers."""

    counts: Counts
    num_open: int
    num_refused: int


class Peers:
    """``directories`` has one per frontend process; the one of this process is number ``index``."""

    def __init__(self, directories: Sequence[str], index: int) -> None:
        self._paths = [str(Path(directory) / _SOCKET) for directory in directories]
        self._index = index
        self._server: asyncio.Server | None = None

    async def listen(self, snapshot: Callable[[], Snapshot]) -> None:
        """Answer with ``snapshot()`` whoever connects."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            data = msgspec.msgpack.encode(snapshot())
            writer.write(len(data).to_bytes(_LENGTH_BYTES, "little") + data)
            writer.close()

        self._server = await asyncio.start_unix_server(answer, self._paths[self._index])

    async def collect(self) -> list[Snapshot]:
        """The counts of all others. Raises HttpError 503 when one of them does not answer: a sum without it would be
        wrong."""
        others = [path for index, path in enumerate(self._paths) if index != self._index]
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return list(await asyncio.gather(*(_ask(path) for path in others)))
        except (OSError, TimeoutError, EOFError, msgspec.MsgspecError) as error:
            raise HttpError(503, "Another frontend process of this server does not answer.", code="peer") from error

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


async def _ask(path: str) -> Snapshot:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "little")
        return msgspec.msgpack.decode(await reader.readexactly(length), type=Snapshot)
    finally:
        writer.close()
