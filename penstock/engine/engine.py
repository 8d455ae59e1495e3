"""Engine: a core, its loop and its executor as one object with an end. Knows no model and no text."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from penstock.config.resolve import ResolvedConfig
from penstock.core.engine import CoreLimits, EngineCore
from penstock.core.loop import CoreLoop
from penstock.core.ports import Constraints, Executor, OutputChannel
from penstock.errors import EngineDeadError
from penstock.types.control import ControlCommand, ControlReply
from penstock.types.decision import Decision
from penstock.types.facts import EngineInfo, ModelFacts, PlatformFacts
from penstock.types.kv import KvCapacity
from penstock.types.request import GenerateRequest

log = logging.getLogger(__name__)


class MonotonicClock:
    """core.ports.Clock on the clock that all records use."""

    def now(self) -> float:
        return time.monotonic()


class Engine:
    """Implements ``ipc.server.EngineInbox``. Any thread may call everything but ``run``, which one thread calls once.

    ``executor`` has been started and answered ``capacity``; it is stopped when ``run`` ends, and ``constraints``
    closed.
    """

    def __init__(
        self,
        executor: Executor,
        capacity: KvCapacity,
        resolved: ResolvedConfig,
        channel: OutputChannel,
        info: EngineInfo,
        constraints: Constraints[Any] | None = None,
    ) -> None:
        self.info = info
        log_decisions(info.decisions)
        self._executor = executor
        self._constraints = constraints
        limits = CoreLimits(
            max_num_seqs=resolved.max_num_seqs,
            max_num_batched_tokens=resolved.max_num_batched_tokens,
            max_model_len=resolved.max_model_len,
            policy=resolved.scheduling_policy,
            prefix_caching=resolved.enable_prefix_caching,
            check_integrity=resolved.check_integrity,
        )
        self._core = EngineCore(
            executor,
            capacity,
            limits,
            channel,
            MonotonicClock(),
            content_identity(info.model, resolved),
            constraints=constraints,
        )
        self._loop = CoreLoop(self._core)

    def submit(self, request: GenerateRequest) -> None:
        self._loop.submit(request)

    def abort(self, request_ids: Sequence[int]) -> None:
        self._loop.abort(request_ids)

    def control(self, command: ControlCommand, reply: Callable[[ControlReply], None]) -> None:
        def answer(done: Future[ControlReply]) -> None:
            error = done.exception()
            reply(ControlReply(ok=False, message=str(error)) if error else done.result())

        self._loop.control(command).add_done_callback(answer)

    def stop(self) -> None:
        self._loop.stop()

    def health(self) -> str:
        return self._core.health()

    @property
    def death(self) -> EngineDeadError | None:
        """What the executor died of, with its cause; None while it lives."""
        return self._core.death

    def run(self) -> None:
        """Serve until ``stop``. Raises what the core raises, after every open request has had its terminal."""
        try:
            self._loop.run()
        finally:
            self._executor.stop()
            if self._constraints is not None:
                self._constraints.close()


def content_identity(model: ModelFacts, resolved: ResolvedConfig) -> str:
    """What decides the content of a KV block besides tokens: the same weights in another dtype write other keys and
    values, though blocks of float16 and bfloat16 have equal sizes."""
    return f"{model.identity}:{resolved.dtype}"


def log_decisions(decisions: Sequence[Decision]) -> None:
    """One line each; the refused candidates, with every reason, for those who ask for debug."""
    for decision in decisions:
        log.info("%s: %s (%s)", decision.subject, decision.chosen or "nothing", decision.why)
        for rejection in decision.rejected:
            log.debug("%s: not %s: %s", decision.subject, rejection.name, "; ".join(rejection.reasons))


def make_info(
    model: ModelFacts,
    platform: PlatformFacts,
    resolved: ResolvedConfig,
    capacity: KvCapacity,
    decisions: tuple[Decision, ...],
) -> EngineInfo:
    return EngineInfo(
        model=model,
        platform=platform,
        max_model_len=resolved.max_model_len,
        max_num_seqs=resolved.max_num_seqs,
        num_blocks=capacity.num_blocks,
        block_tokens=tuple(group.tokens_per_block for group in capacity.groups),
        decisions=decisions,
        settings=resolved.settings(),
    )
