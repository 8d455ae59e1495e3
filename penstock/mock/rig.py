"""An engine core on a mock executor, ready to drive: for tests, benchmarks and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.core.engine import CoreLimits, EngineCore
from penstock.core.ports import Constraints, DraftSource, Executor, KvTier, OutputChannel
from penstock.mock.clock import VirtualClock, WaitableClock
from penstock.types.kv import KvGroupSpec, Visibility
from penstock.types.output import OutputBatch, Terminal, TokenUpdate
from penstock.types.request import GenerateRequest, SamplingParams

__all__ = [
    "DecodingRig",
    "RecordingChannel",
    "full_group",
    "make_core",
    "make_request",
    "run_until_idle",
    "window_group",
]


@dataclass(slots=True)
class RecordingChannel:
    """Keeps everything that the core emits, per request."""

    updates: dict[int, list[TokenUpdate]] = field(default_factory=dict)
    terminals: dict[int, list[Terminal]] = field(default_factory=dict)
    late_updates: int = 0  # updates that came after their request's terminal

    def emit(self, batch: OutputBatch) -> None:
        for update in batch.updates:
            self.late_updates += update.request_id in self.terminals
            self.updates.setdefault(update.request_id, []).append(update)
        for terminal in batch.terminals:
            self.terminals.setdefault(terminal.request_id, []).append(terminal)

    def tokens(self, request_id: int) -> tuple[int, ...]:
        return tuple(token for update in self.updates.get(request_id, ()) for token in update.token_ids)

    def terminal(self, request_id: int) -> Terminal:
        """The one terminal of a request. Raises ValueError when there is none or more than one."""
        terminals = self.terminals.get(request_id, [])
        if len(terminals) != 1:
            raise ValueError(f"request {request_id} has {len(terminals)} terminals")
        return terminals[0]


def full_group(name: str = "full", tokens_per_block: int = 16, pool: int = 0) -> KvGroupSpec:
    return KvGroupSpec(
        name=name, visibility=Visibility.ALL, entries_per_block=tokens_per_block, bytes_per_block=0, pool=pool
    )


def window_group(window: int, tokens_per_block: int = 16, pool: int = 0) -> KvGroupSpec:
    return KvGroupSpec(
        name=f"window{window}",
        visibility=Visibility.WINDOW,
        window=window,
        entries_per_block=tokens_per_block,
        bytes_per_block=0,
        pool=pool,
    )


def make_core(
    executor: Executor,
    limits: CoreLimits,
    channel: OutputChannel,
    *,
    clock: WaitableClock | None = None,
    tiers: Sequence[KvTier] = (),
    drafter: DraftSource | None = None,
    constraints: Constraints[Any] | None = None,
) -> EngineCore:
    """Start the executor and put a core on top of it."""
    return EngineCore(
        executor,
        executor.start(),
        limits,
        channel,
        clock if clock is not None else VirtualClock(),
        "mock",
        tiers=tiers,
        drafter=drafter,
        constraints=constraints,
    )


class DecodingRig:
    """One request per prompt length, all in the midst of decoding and none with an end, ready to be timed.

    For those who may not see the core: they get its turns, and nothing of its insides.
    """

    def __init__(self, executor: Executor, prompt_lengths: Sequence[int], max_model_len: int) -> None:
        num_rows = len(prompt_lengths)
        limits = CoreLimits(
            max_num_seqs=num_rows, max_num_batched_tokens=num_rows * max_model_len, max_model_len=max_model_len
        )
        self._core = make_core(executor, limits, _Silence())
        for request_id, length in enumerate(prompt_lengths):
            self._core.add(make_request(request_id, [request_id + 1] * length, max_tokens=None))
        while self._core.stats().generation_tokens < num_rows:
            self.step()

    def step(self) -> None:
        """One turn: the next plan, and the oldest result."""
        self._core.step(block=True)


class _Silence:
    """Output goes nowhere."""

    def emit(self, batch: OutputBatch) -> None:
        pass


def make_request(
    request_id: int, prompt: Sequence[int], *, max_tokens: int | None = 16, **fields: object
) -> GenerateRequest:
    """A greedy request. ``fields`` that SamplingParams has go there, the others to GenerateRequest."""
    sampling_fields = {name: value for name, value in fields.items() if name in SamplingParams.__slots__}
    request_fields = {name: value for name, value in fields.items() if name not in sampling_fields}
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, **sampling_fields)  # type: ignore[arg-type]
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
        **request_fields,  # type: ignore[arg-type]
    )


def run_until_idle(core: EngineCore, max_turns: int = 100_000) -> int:
    """Turn until there is no work; returns the number of turns. Raises RuntimeError when it does not end."""
    turns = 0
    while core.has_work:
        core.step(block=True)
        turns += 1
        if turns > max_turns:
            raise RuntimeError(f"the core still has work after {max_turns} turns: {core.stats()}")
    return turns
