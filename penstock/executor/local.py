"""LocalExecutor: the executor port in this process, one worker thread around one runner. Knows no scheduler."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import torch

from penstock.errors import EngineDeadError
from penstock.executor.load import LoadedExecutor, load_executor
from penstock.executor.runner import RowMasks
from penstock.executor.spec import ExecutorSpec
from penstock.types.control import CheckIntegrity, ControlCommand, ControlReply, ResetPrefixCache
from penstock.types.decision import Decision
from penstock.types.kv import KvCapacity
from penstock.types.plan import StepPlan
from penstock.types.result import StepResult

STOPPED = "The executor was stopped."

log = logging.getLogger(__name__)


class LocalStepHandle:
    """One step in flight. Filled by the worker, read by the thread that submitted the plan."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self._finished = threading.Event()
        self._masks_there = threading.Event()
        self._masks: dict[int, list[bytes]] = {}
        self._result: StepResult | None = None
        self._failure: str | None = None
        self._cause: BaseException | None = None

    def masks(self, rows: Sequence[int], bitmasks: Sequence[bytes]) -> None:
        """A row may be listed several times: its masks belong to the positions behind its drafts, in order."""
        collected: dict[int, list[bytes]] = defaultdict(list)
        for row, mask in zip(rows, bitmasks, strict=True):
            collected[row].append(mask)
        self._masks = dict(collected)
        self._masks_there.set()

    def done(self) -> bool:
        return self._finished.is_set()

    def result(self) -> StepResult:
        self._finished.wait()
        if self._result is None:
            raise EngineDeadError(self._failure or STOPPED) from self._cause
        return self._result

    def wait_for_masks(self) -> RowMasks:
        """Called by the worker. Raises EngineDeadError when the executor stops while it waits."""
        self._masks_there.wait()
        if self._failure is not None:
            raise EngineDeadError(self._failure)
        return self._masks

    def complete(self, result: StepResult) -> None:
        self._result = result
        self._finished.set()

    def fail(self, message: str, cause: BaseException | None = None) -> None:
        """Nothing more will come: wakes whoever waits, on either side."""
        if not self._finished.is_set():
            self._failure, self._cause = message, cause
            self._finished.set()
        self._masks_there.set()


class LocalExecutor:
    """Runs plans strictly in order on one worker thread, with ``spec.depth`` of them in flight.

    ``load`` is called on the worker thread; it reads the weights and builds the runner.
    """

    def __init__(self, spec: ExecutorSpec, *, load: Callable[[ExecutorSpec], LoadedExecutor] = load_executor) -> None:
        self._spec = spec
        self._load = load
        self._inbox: SimpleQueue[LocalStepHandle | None] = SimpleQueue()
        self._worker: threading.Thread | None = None
        self._ready = threading.Event()
        self._loaded: LoadedExecutor | None = None
        self._start_error: BaseException | None = None
        self._lock = threading.Lock()  # guards _open and _failure
        self._open: set[LocalStepHandle] = set()
        self._failure = ""
        self._cause: BaseException | None = None

    @property
    def depth(self) -> int:
        return self._spec.depth

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What was chosen while loading; empty before ``start``."""
        return self._loaded.decisions if self._loaded is not None else ()

    @property
    def report(self) -> tuple[str, ...]:
        """Weights and memory, written out for people; empty before ``start``."""
        return self._loaded.lines if self._loaded is not None else ()

    def start(self) -> KvCapacity:
        if self._worker is not None:
            raise RuntimeError("start is called once")
        self._worker = threading.Thread(target=self._work, name="penstock-executor", daemon=True)
        self._worker.start()
        self._ready.wait()
        if self._start_error is not None:
            raise self._start_error
        assert self._loaded is not None
        return self._loaded.capacity

    def step(self, plan: StepPlan) -> LocalStepHandle:
        handle = LocalStepHandle(plan)
        with self._lock:
            failure = self._failure or ("" if self._loaded is not None else "The executor was not started.")
            if not failure:
                self._open.add(handle)
                self._inbox.put(handle)
        if failure:
            handle.fail(failure, self._cause)
        return handle

    def control(self, command: ControlCommand) -> ControlReply:
        match command:
            case ResetPrefixCache():  # block contents are named by the core alone
                return ControlReply()
            case CheckIntegrity():
                return ControlReply(ok=not self.health(), message=self.health())

    def health(self) -> str:
        with self._lock:
            if self._failure:
                return self._failure
        if self._loaded is None:
            return "The executor has not started."
        if self._worker is None or not self._worker.is_alive():
            return "The executor's worker thread has ended."
        return ""

    def stop(self) -> None:
        self._die(STOPPED, None)
        self._inbox.put(None)
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()
        self._loaded = None

    def _work(self) -> None:
        if self._spec.threads is not None:
            torch.set_num_threads(self._spec.threads)
        try:
            self._loaded = self._load(self._spec)
        except BaseException as error:  # noqa: BLE001 - raised again by start, on the thread that called it
            self._start_error = error
            return
        finally:
            self._ready.set()
        runner = self._loaded.runner
        while (handle := self._inbox.get()) is not None:
            if handle.done():  # failed by stop, or by a step before it
                continue
            try:
                result = runner.run(handle.plan, handle.wait_for_masks)
            except Exception as error:  # the thread's boundary: every open handle carries it
                log.exception("the executor cannot go on")
                self._die(f"The executor failed in step {handle.plan.step_id}: {type(error).__name__}: {error}", error)
                return
            with self._lock:
                self._open.discard(handle)
            handle.complete(result)

    def _die(self, message: str, cause: BaseException | None) -> None:
        """No further step runs; every step in flight is answered. The first reason stays."""
        with self._lock:
            if not self._failure:
                self._failure, self._cause = message, cause
            open_handles, self._open = self._open, set()
        for handle in open_handles:
            handle.fail(message, cause)
