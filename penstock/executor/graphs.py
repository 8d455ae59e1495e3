"""Graphs: the computation of a step recorded once per shape and repeated with one call, without Python.

What CUDA graphs are to a GPU. Knows no model and no kernel: a ``Recorder`` turns a callable into a ``Recorded``; this
file decides what is recorded, keeps it within bounds, and remembers why something could not be. A step that cannot be
recorded is computed eagerly; the reason is logged once and shown with the decisions.

What a recorded computation reads must stay at its address: the inputs of a step do (``executor/inputs.py``), and when
they move, ``forget`` is called.
"""

from __future__ import annotations

import logging
import statistics
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from penstock.executor.inputs import StepShape
from penstock.types.control import KernelTime
from penstock.types.decision import Decision, Rejection

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

log = logging.getLogger(__name__)

MAX_GRAPHS = 128  # about 100 KiB each; a server of 64 seats decodes with one for every number of rows
MAX_TRIALS = 8  # recordings that fail before the first that does not; then the model is not made for it


class GraphRefusedError(Exception):
    """A computation cannot be recorded, and why."""


class Variant(Enum):
    """What is computed behind the forward of a step."""

    NOTHING = "nothing"  # no row is sampled
    GREEDY = "greedy"  # the argmax of the logits
    LOGITS = "logits"
    DRAWN = "drawn"  # a token of each row by its own sampling parameters
    EDITED = "edited"  # the same, behind what rows forbid, shift or penalise
    DESCRIBED = "described"  # the same, and log-probabilities


@dataclass(frozen=True, slots=True)
class GraphKey:
    """All that a recorded step depends on besides the content of its inputs."""

    shape: StepShape
    variant: Variant


class Recorded(Protocol):
    """A computation that can be repeated."""

    def __len__(self) -> int:
        """Kernel calls."""

    def run(self) -> None:
        """Repeat it; the answer that came with the recording is filled again."""

    def run_timed(self) -> list[tuple[str, int]]:
        """The same, and answers (name, nanoseconds) of every kernel call."""


class Recorder(Protocol):
    """One way to record on one kind of device. Recorded computations share memory for their results, because one runs
    at a time."""

    @property
    def name(self) -> str: ...

    def record(self, compute: Callable[[], T], /) -> tuple[Recorded, T]:
        """Record without answering: the answer is valid after ``run``. Raises GraphRefusedError."""


@dataclass(frozen=True, slots=True)
class _Graph(Generic[T_co]):
    recorded: Recorded
    answer: T_co


class StepGraphs:
    """Recorded steps by shape. ``recorder`` is None when steps run eagerly, for the reason ``off``."""

    def __init__(self, recorder: Recorder | None, off: str = "", max_graphs: int = MAX_GRAPHS) -> None:
        self._recorder = recorder
        self._off = off
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[GraphKey, _Graph[Any]] = OrderedDict()
        self._refused: dict[GraphKey, str] = {}
        self.timing = False
        self._step_ns: dict[tuple[int, str, int], list[int]] = {}  # (tokens, kernel, calls) -> ns of each step

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: GraphKey, record: Callable[[], T], eager: Callable[[], T]) -> T:
        """The answer of the step. ``record`` computes it over inputs of fixed places and shapes, ``eager`` as it is;
        both give the same bits. The answer is valid until the next call."""
        graph = self._graphs.get(key)
        if graph is None:
            if self._recorder is None or key in self._refused or self._given_up:
                return eager()
            graph = self._record(key, record)
            if graph is None:
                return eager()
        else:
            self._graphs.move_to_end(key)
        if self.timing:
            self._count(key.shape.num_tokens, graph.recorded.run_timed())
        else:
            graph.recorded.run()
        answer: T = graph.answer
        return answer

    @property
    def on(self) -> bool:
        """Steps are to be recorded."""
        return self._recorder is not None and not self._given_up

    def wants(self, key: GraphKey) -> bool:
        """``prepare`` would record."""
        return self.on and key not in self._graphs and key not in self._refused

    def prepare(self, key: GraphKey, record: Callable[[], T]) -> None:
        """Record without running."""
        if self.wants(key):
            self._record(key, record)

    def forget(self) -> None:
        """Inputs have moved: nothing that was recorded may run again."""
        self._graphs.clear()
        self._refused.clear()

    @property
    def _given_up(self) -> bool:
        return len(self._refused) >= MAX_TRIALS and not self._graphs

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why steps run eagerly, each reason once."""
        return tuple(dict.fromkeys(self._refused.values()))

    def decision(self) -> Decision:
        """What became of it so far, for people."""
        return graphs_decision(self._off, self.refusals, some=bool(self._graphs))

    def take_kernel_times(self) -> tuple[KernelTime, ...]:
        """What was counted while ``timing`` was set, longest first; forgets it."""
        times = [
            KernelTime(name, tokens, len(spent), calls, statistics.median(spent) / 1e9)
            for (tokens, name, calls), spent in self._step_ns.items()
        ]
        self._step_ns.clear()
        return tuple(sorted(times, key=lambda time: -time.seconds))

    def _record(self, key: GraphKey, compute: Callable[[], T]) -> _Graph[T] | None:
        assert self._recorder is not None
        try:
            recorded, answer = self._recorder.record(compute)
        except GraphRefusedError as refusal:
            reason = str(refusal)
            if reason not in self._refused.values():
                log.info("steps like %s, %s run eagerly: %s", key.shape, key.variant.value, reason)
            self._refused[key] = reason
            if len(self._refused) > self._max_graphs:
                del self._refused[next(iter(self._refused))]
            return None
        graph = _Graph(recorded, answer)
        self._graphs[key] = graph
        if len(self._graphs) > self._max_graphs:
            self._graphs.popitem(last=False)
        return graph

    def _count(self, num_tokens: int, times: list[tuple[str, int]]) -> None:
        for name, calls in Counter(name for name, _ in times).items():
            spent = sum(ns for other, ns in times if other == name)
            self._step_ns.setdefault((num_tokens, name, calls), []).append(spent)


def graphs_decision(off: str, refusals: tuple[str, ...] = (), *, some: bool = True) -> Decision:
    """``off`` says why nothing is to be recorded, ``refusals`` what could not be although ``some`` steps could."""
    subject = "steps"
    if off:
        return Decision(subject, "eager", off)
    if refusals and not some:
        return Decision(subject, "eager", "the model cannot be recorded", (Rejection("graphs", refusals),))
    rejected = (Rejection("graphs of all shapes", refusals),) if refusals else ()
    return Decision(subject, "graphs", "each shape is recorded when it is first met", rejected)
