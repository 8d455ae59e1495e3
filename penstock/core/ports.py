"""Protocols that the core needs from outside: an executor, a clock, an output channel, and KV beyond the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol, TypeVar

from penstock.types.control import ControlCommand, ControlReply
from penstock.types.kv import BlockHash, KvCapacity
from penstock.types.output import OutputBatch
from penstock.types.plan import Bitmasks, StepPlan
from penstock.types.request import SamplingParams
from penstock.types.result import StepResult
from penstock.types.structured import ConstraintStats


class StepHandle(Protocol):
    """One step in flight."""

    def masks(self, rows: Sequence[int], bitmasks: Bitmasks) -> None:
        """Deliver the token masks of ``plan.masked_rows``: one bit per token id, little-endian 32-bit words.

        A row with drafts is listed once for each position that it samples, in order. ``bitmasks`` may be a call that
        waits until they are filled: it is made by whoever samples, once, after the forward. Called at most once, before
        ``result``; the forward does not wait for it, the sampler does.
        """

    def done(self) -> bool:
        """True when ``result`` will not block."""

    def result(self) -> StepResult:
        """Block until the step is finished. Raises EngineDeadError when the executor cannot go on."""


class Executor(Protocol):
    """Runs plans, strictly in order, with up to ``depth`` of them in flight. Called from one thread."""

    @property
    def depth(self) -> int:
        """How many plans may be in flight; at least 1."""

    def start(self) -> KvCapacity:
        """Load, allocate, warm up. Called once, first. Blocks until ready."""

    def step(self, plan: StepPlan) -> StepHandle:
        """Enqueue one plan and return at once."""

    def control(self, command: ControlCommand) -> ControlReply:
        """Carry out a command between steps; called only while no plan is in flight."""

    def idle(self) -> bool:
        """There is no work: do one thing that a later step would have to wait for, in a few tens of milliseconds at
        most, because a request may come. False when there is nothing left to do. Never raises."""

    def health(self) -> str:
        """An empty string when well, else a sentence that says what is wrong."""

    def stop(self) -> None:
        """Release everything. Idempotent; never raises."""


class Clock(Protocol):
    def now(self) -> float:
        """Monotonic seconds."""


class OutputChannel(Protocol):
    def emit(self, batch: OutputBatch) -> None:
        """Hand a batch to the frontends; must not block for long."""


class Lookup(Enum):
    HIT = "hit"
    MISS = "miss"
    LATER = "later"  # a tier is being asked; ask again in a later step


class KvTier(Protocol):
    """KV outside the device blocks, addressed by block hash (offload tiers, remote caches).

    Two-phase: every ``prepare_*`` that reserved something is followed by exactly one ``complete_*`` over the same
    hashes, also on abort and when the executor dies. Prepared blocks stay. Called from the core's thread only.
    """

    @property
    def name(self) -> str: ...

    def lookup(self, group: int, block_hash: BlockHash) -> Lookup:
        """Free of side effects on contents."""

    def prepare_load(self, group: int, block_hashes: Sequence[BlockHash]) -> bool:
        """Pin blocks that were hits. False when one has gone meanwhile: then nothing is pinned, nothing to complete."""

    def complete_load(self, group: int, block_hashes: Sequence[BlockHash]) -> None: ...

    def prepare_store(self, group: int, block_hashes: Sequence[BlockHash]) -> tuple[BlockHash, ...]:
        """Reserve room; answer those that must be copied (others are present, or there is no room).

        Only the answered ones are completed; an empty answer needs no completion.
        """

    def complete_store(self, group: int, block_hashes: Sequence[BlockHash], ok: bool) -> None: ...


class DraftSource(Protocol):
    """Proposes tokens to verify. Verification is the executor's business."""

    def propose(self, request_id: int, token_ids: Sequence[int], num_unknown: int, max_drafts: int) -> tuple[int, ...]:
        """At most ``max_drafts`` tokens that may follow. ``num_unknown`` rows in flight, each of which will add tokens
        after ``token_ids``, have not answered yet. Called while a step is planned: must be quick."""


class Constraint(Protocol):
    """What one request's answer must look like. Called from the core's thread."""

    @property
    def done(self) -> bool:
        """It has been compiled, or refused: the request may start, or end."""

    @property
    def problem(self) -> str:
        """Why the request cannot go on, as a sentence; an empty string when it can."""

    @property
    def is_terminated(self) -> bool:
        """Nothing but an end token may follow the tokens accepted so far."""

    def open(self) -> None:
        """Begin; called once, when ``done`` without a problem."""

    def drop(self) -> None:
        """Nobody waits any more; called at most once, instead of ``open``, while not ``done``."""

    def accept(self, token_ids: Sequence[int]) -> None:
        """Go on by tokens of the answer. What goes wrong is told by ``problem``."""


C = TypeVar("C", bound=Constraint)


class Constraints(Protocol[C]):
    """Compiles constraints away from the core's thread and fills masks beside it."""

    def constrain(self, sampling: SamplingParams) -> C:
        """For a request whose ``sampling.structured`` is there. Returns at once."""

    def fill(self, rows: Sequence[tuple[C | None, Sequence[int]]]) -> Callable[[], Sequence[bytes]]:
        """Fill the masks of some rows of one step, each with its constraint and its drafts, and return at once with a
        call that waits for them: per row one for the next token and one behind every draft. None allows everything.

        Until its step has answered, a constraint that is being filled may not be touched.
        """

    def stats(self) -> ConstraintStats:
        """Counters since the start."""

    def close(self) -> None:
        """Release threads and processes. Idempotent."""
