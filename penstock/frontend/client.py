"""EngineClient: the only door from a frontend to an engine, in process or over ipc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.types.control import ControlCommand, ControlReply
from penstock.types.facts import EngineInfo
from penstock.types.output import EngineStats, OutputSink
from penstock.types.request import GenerateRequest

__all__ = ["EngineClient", "EngineInfo"]


class EngineClient(Protocol):
    """Used from one event loop. Every submitted request gets exactly one Terminal, also when the engine dies.

    The path of tokens is a plain call: one batch from the engine becomes one round of sink calls, without a task
    or a queue per request, so that the cost per token stays small.
    """

    @property
    def info(self) -> EngineInfo: ...

    def new_request_id(self) -> int:
        """An id that no other request of this engine has."""

    def claim(self, request_ids: Sequence[int]) -> None:
        """These requests, which are submitted next, are one to whoever asked: all of them are taken or none."""

    def submit(self, request: GenerateRequest, sink: OutputSink) -> None:
        """Raises EngineDeadError at once when the engine is gone; after that, failures arrive as the Terminal."""

    def abort(self, request_ids: Sequence[int]) -> None:
        """Ask to end requests; each still gets its Terminal. Unknown and finished ids are ignored."""

    def stats(self) -> EngineStats:
        """The newest statistics received; does not wait."""

    def health(self) -> str:
        """An empty string when well, else a sentence."""

    async def control(self, command: ControlCommand) -> ControlReply: ...

    async def close(self) -> None:
        """Stop the engine behind this client, if this client started it."""
