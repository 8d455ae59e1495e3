"""EngineClient: the only door from a frontend to an engine, in process or over ipc."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from penstock.types.control import ControlCommand, ControlReply
from penstock.types.decision import Decision
from penstock.types.facts import ModelFacts, PlatformFacts
from penstock.types.output import EngineStats, Terminal, TokenUpdate
from penstock.types.request import GenerateRequest

OutputSink = Callable[[Sequence[TokenUpdate], Terminal | None], None]
"""Called on the event loop's thread, once per batch in which the request has news; must not block or raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine is, fixed once it is ready."""

    model: ModelFacts
    platform: PlatformFacts
    max_model_len: int
    max_num_seqs: int
    num_blocks: tuple[int, ...]
    block_tokens: tuple[int, ...]
    decisions: tuple[Decision, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)  # resolved configuration, for the debug route


class EngineClient(Protocol):
    """Used from one event loop. Every submitted request gets exactly one Terminal, also when the engine dies.

    The path of tokens is a plain call: one batch from the engine becomes one round of sink calls, without a task
    or a queue per request, so that the cost per token stays small.
    """

    @property
    def info(self) -> EngineInfo: ...

    def new_request_id(self) -> int:
        """An id that no other request of this engine has."""

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
