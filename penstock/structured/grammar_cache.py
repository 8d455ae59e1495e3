"""Compiles constraints on threads of its own, each once, and keeps what was compiled last.

Before a constraint is compiled here, the trial process has compiled it within the limits; whoever does not come back
from there is killed, and the constraint is refused. Refusals are kept as well: asking again costs nothing; but not
those by time or memory, which may be the machine's fault.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import SimpleQueue

from penstock.structured.contract import (
    CompiledGrammar,
    ConstraintError,
    GrammarCompiler,
    StructuredBackend,
    Vocabulary,
)
from penstock.structured.trial import NoTrialError, Trial, TrialLimitError
from penstock.types.structured import ConstraintStats, StructuredKind, StructuredSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileLimits:
    """``time_s`` and ``memory_bytes`` hold for one compilation; at most ``max_cached`` grammars are kept, of
    ``max_cached_bytes`` together: what compiling took, and ``growth_bytes`` for what following answers adds.
    ``trials`` false compiles without a trial process, which then nothing can stop, nor measure."""

    time_s: float = 5.0
    memory_bytes: int = 1 << 30
    max_cached: int = 256
    max_cached_bytes: int = 1 << 30
    growth_bytes: int = 4 << 20
    num_threads: int = 2
    trials: bool = True


class Pending:
    """A constraint on its way. ``grammar`` or ``problem`` is there when ``done`` is. ``num_waiting`` requests want it;
    without any, before its turn comes, it is ``dropped``. ``lasting``: asking again would answer the same."""

    __slots__ = ("done", "dropped", "grammar", "lasting", "num_bytes", "num_waiting", "problem", "spec")

    def __init__(self, spec: StructuredSpec) -> None:
        self.spec = spec
        self.done = False
        self.grammar: CompiledGrammar | None = None
        self.problem = ""
        self.lasting = True
        self.num_bytes = 0
        self.num_waiting = 1
        self.dropped = False


class GrammarCache:
    """``find`` and ``drop`` are called by one thread. ``vocabulary`` is asked for when the first constraint comes."""

    def __init__(
        self, backend: StructuredBackend, vocabulary: Callable[[], Vocabulary], limits: CompileLimits | None = None
    ) -> None:
        self._backend = backend
        self._make_vocabulary = vocabulary
        self._limits = limits or CompileLimits()
        self._kept: OrderedDict[StructuredSpec, Pending] = OrderedDict()
        self._jobs: SimpleQueue[Pending | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._prepared: tuple[Vocabulary, GrammarCompiler] | None = None
        self._prepare_lock = threading.Lock()  # its own: preparing takes long, and the core's thread takes the other
        self._lock = threading.Lock()  # guards what follows
        self._trials: list[Trial] = []
        self._closed = False
        self._stats = ConstraintStats()
        self._num_found = 0

    def find(self, spec: StructuredSpec) -> Pending:
        """What became of the constraint, or what will."""
        pending = self._kept.get(spec)
        if pending is not None and self._joined(pending):
            self._num_found += 1
            self._kept.move_to_end(spec)
            return pending
        self._kept.pop(spec, None)
        pending = self._kept[spec] = Pending(spec)
        self._forget_oldest()
        if spec.kind not in self._backend.kinds:
            pending.problem = f"Constraints of kind {spec.kind.value} are not supported by {self._backend.name}."
            pending.done = True
            return pending
        if len(self._threads) < self._limits.num_threads:
            thread = threading.Thread(target=self._work, name=f"penstock-grammar-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(pending)
        return pending

    def drop(self, pending: Pending) -> None:
        """One of the requests that waited for it does not any more."""
        with self._lock:
            pending.num_waiting -= 1

    def stats(self) -> ConstraintStats:
        return replace(self._stats, num_found=self._num_found)

    def vocabulary(self) -> Vocabulary:
        """Of a grammar that has been compiled."""
        assert self._prepared is not None
        return self._prepared[0]

    def close(self) -> None:
        """End threads and processes. Idempotent; does not wait for a compilation in this process."""
        with self._lock:
            self._closed = True
            trials = list(self._trials)
        for _ in self._threads:
            self._jobs.put(None)
        for trial in trials:
            trial.close()

    def _joined(self, pending: Pending) -> bool:
        """Whether one more request may wait for it, or have what it became."""
        with self._lock:
            pending.num_waiting += 1
            if pending.grammar is not None and pending.grammar.is_spent:
                return False
            return not pending.dropped and (pending.lasting or not pending.done)

    def _is_dropped(self, pending: Pending) -> bool:
        with self._lock:
            pending.dropped = pending.num_waiting <= 0
            return pending.dropped

    def _forget_oldest(self) -> None:
        num_over = len(self._kept) - self._limits.max_cached
        bytes_over = sum(pending.num_bytes for pending in self._kept.values()) - self._limits.max_cached_bytes
        for spec, pending in list(self._kept.items()):
            if num_over <= 0 and bytes_over <= 0:
                return
            if pending.done or pending.dropped:
                del self._kept[spec]
                num_over -= 1
                bytes_over -= pending.num_bytes

    def _work(self) -> None:
        trial: Trial | None = None
        while (pending := self._jobs.get()) is not None and not self._closed:
            if self._is_dropped(pending):
                continue
            began = time.perf_counter()
            try:
                vocabulary, compiler = self._prepare()
                if self._limits.trials and trial is None:
                    trial = self._open_trial(vocabulary)
                # What any JSON object is was not written by the one who asks.
                if trial is not None and pending.spec.kind is not StructuredKind.JSON_OBJECT:
                    pending.num_bytes = self._try(trial, pending.spec)
                grammar = compiler.compile(pending.spec)
                pending.num_bytes += self._limits.growth_bytes
                pending.grammar = grammar
            except ConstraintError as error:
                pending.problem, pending.lasting = str(error), not isinstance(error, TrialLimitError)
            except Exception as error:  # whatever a library raises, the request must hear of it
                log.exception("a constraint was not compiled")
                pending.problem = f"The constraint cannot be compiled: {type(error).__name__}: {error}"[:500]
            self._count(time.perf_counter() - began, refused=pending.grammar is None)
            pending.done = True

    def _count(self, seconds: float, *, refused: bool) -> None:
        with self._lock:
            stats = self._stats
            self._stats = replace(
                stats,
                num_compiled=stats.num_compiled + (not refused),
                num_refused=stats.num_refused + refused,
                compile_s=stats.compile_s + seconds,
            )

    @staticmethod
    def _try(trial: Trial, spec: StructuredSpec) -> int:
        try:
            return trial.check(spec)
        except NoTrialError as error:
            log.warning("constraints are compiled without a trial: %s", error)
            return 0

    def _prepare(self) -> tuple[Vocabulary, GrammarCompiler]:
        with self._prepare_lock:
            if self._prepared is None:
                vocabulary = self._make_vocabulary()
                if not vocabulary.end_ids:
                    raise ConstraintError("Answers cannot be constrained: this model has no token that ends an answer.")
                self._prepared = vocabulary, self._backend.prepare(vocabulary)
            return self._prepared

    def _open_trial(self, vocabulary: Vocabulary) -> Trial:
        limits = self._limits
        trial = Trial(self._backend.name, vocabulary, time_limit_s=limits.time_s, memory_bytes=limits.memory_bytes)
        with self._lock:
            self._trials.append(trial)
            if self._closed:
                trial.close()
        return trial
