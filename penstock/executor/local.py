"""LocalExecutor: the executor port in this process, one worker thread around one runner. Knows no scheduler."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import torch

from penstock.errors import EngineDeadError, IntegrityError
from penstock.executor.answer import RowMasks
from penstock.executor.device_memory import release_device
from penstock.executor.device_runner import DeviceRunner, PendingStep
from penstock.executor.load import LoadedExecutor, load_executor, on_device
from penstock.executor.spec import ExecutorSpec
from penstock.kernels.native.extension import set_num_threads
from penstock.types.control import CheckIntegrity, ControlCommand, ControlReply, ResetPrefixCache, TimeKernels
from penstock.types.decision import Decision
from penstock.types.kv import KvCapacity
from penstock.types.plan import Bitmasks, StepPlan
from penstock.types.result import StepResult

STOPPED = "The executor was stopped."

log = logging.getLogger(__name__)


class LocalStepHandle:
    """One step in flight. Filled by the worker, read by the thread that submitted the plan; without a worker, filled by
    ``compute`` on the thread that asks for the result."""

    def __init__(self, plan: StepPlan, compute: Callable[[LocalStepHandle], None] | None = None) -> None:
        self.plan = plan
        self.pending: PendingStep | None = None  # when it was launched
        self._compute = compute
        self._masks: tuple[Sequence[int], Bitmasks] = (), ()
        self._delivered = not plan.masked_rows
        self._result: StepResult | None = None
        self._failure: str | None = None
        self._cause: BaseException | None = None
        # Between two threads only: they cost more than planning a step does.
        self._finished = threading.Event() if compute is None else None
        self._masks_there = threading.Event() if compute is None else None

    def masks(self, rows: Sequence[int], bitmasks: Bitmasks) -> None:
        """A row may be listed several times: its masks belong to the positions behind its drafts, in order. A call that
        waits for them is made by ``wait_for_masks``, so that the forward runs while they are filled."""
        self._masks = rows, bitmasks
        self._delivered = True
        if self._masks_there is not None:
            self._masks_there.set()

    def done(self) -> bool:
        if self._result is not None or self._failure is not None:
            return True
        return self.pending is not None and self.pending.done()

    def result(self) -> StepResult:
        if self._finished is not None:
            self._finished.wait()
        elif self._compute is not None and self._result is None and self._failure is None:
            self._compute(self)
        if self._result is None:
            raise EngineDeadError(self._failure or STOPPED) from self._cause
        return self._result

    @property
    def lets_others_start(self) -> bool:
        """A plan behind this one may be launched: that may finish this one, which needs its masks."""
        return self.pending is not None and self._delivered

    def wait_for_masks(self) -> RowMasks:
        """Called where the step runs. Raises EngineDeadError when the executor stops while it waits. Without a worker
        the masks are there, because they are delivered before the result is asked for."""
        if self._masks_there is not None:
            self._masks_there.wait()
        if self._failure is not None:
            raise EngineDeadError(self._failure)
        if not self._delivered:
            raise IntegrityError(f"the masks of step {self.plan.step_id} were not delivered before its result")
        rows, bitmasks = self._masks
        collected: dict[int, list[bytes]] = defaultdict(list)
        for row, mask in zip(rows, bitmasks() if callable(bitmasks) else bitmasks, strict=True):
            collected[row].append(mask)
        return dict(collected)

    def complete(self, result: StepResult) -> None:
        self._result = result
        if self._finished is not None:
            self._finished.set()

    def fail(self, message: str, cause: BaseException | None = None) -> None:
        """Nothing more will come: wakes whoever waits, on either side."""
        if self._result is None and self._failure is None:
            self._failure, self._cause = message, cause
        for event in (self._finished, self._masks_there):
            if event is not None:
                event.set()


class LocalExecutor:
    """Runs plans strictly in order, with ``spec.depth`` of them in flight.

    A device computes beside the host: plans are launched by ``step`` and finished on the thread that asks for their
    results (``launches``: the runner is a DeviceRunner). On a CPU with a depth of 1 there is nothing to overlap, and a
    plan runs on that thread as well: handing it to another thread and back takes longer than planning it. Otherwise one
    worker thread runs them. ``load`` reads the weights and builds the runner, on the starting thread or on the worker.
    """

    def __init__(
        self,
        spec: ExecutorSpec,
        *,
        load: Callable[[ExecutorSpec], LoadedExecutor] = load_executor,
        launches: bool | None = None,
    ) -> None:
        self._spec = spec
        self._launches = on_device(spec.platform) if launches is None else launches
        self._load = load
        self._inbox: SimpleQueue[LocalStepHandle | None] = SimpleQueue()
        self._worker: threading.Thread | None = None
        self._ready = threading.Event()
        self._loaded: LoadedExecutor | None = None
        self._start_error: BaseException | None = None
        self._lock = threading.Lock()  # guards _open and _failure
        self._open: dict[LocalStepHandle, None] = {}  # in order of submission
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
        if self._ready.is_set():
            raise RuntimeError("start is called once")
        if self._launches or self._spec.depth == 1:
            self._load_here()
        else:
            self._worker = threading.Thread(target=self._work, name="penstock-executor", daemon=True)
            self._worker.start()
            self._ready.wait()
        if self._start_error is not None:
            raise self._start_error
        assert self._loaded is not None
        return self._loaded.capacity

    def step(self, plan: StepPlan) -> LocalStepHandle:
        handle = LocalStepHandle(plan, self._compute if self._worker is None else None)
        with self._lock:
            failure = self._failure or ("" if self._loaded is not None else "The executor was not started.")
            if not failure:
                self._open[handle] = None
                if self._worker is not None:
                    self._inbox.put(handle)
        if failure:
            handle.fail(failure, self._cause)
        elif self._launches:
            self._launch_ready()
        return handle

    def control(self, command: ControlCommand) -> ControlReply:
        match command:
            case ResetPrefixCache():  # block contents are named by the core alone
                return ControlReply()
            case CheckIntegrity():
                return ControlReply(ok=not self.health(), message=self.health())
            case TimeKernels(enabled=enabled):
                return self._time_kernels(enabled)

    def _time_kernels(self, enabled: bool) -> ControlReply:
        if self._loaded is None:
            return ControlReply(ok=False, message=self.health())
        graphs = self._loaded.runner.graphs
        graphs.timing = enabled
        return ControlReply(kernel_times=graphs.take_kernel_times())

    def idle(self) -> bool:
        """Record a step that has not been met. On a CPU steps are recorded in less time than they take."""
        if not self._launches or self._loaded is None or self.health():
            return False
        assert isinstance(self._loaded.runner, DeviceRunner)
        try:
            return self._loaded.runner.record_one()
        except Exception as error:  # as in _run
            log.exception("the executor cannot go on")
            self._die(f"The executor failed without a step: {type(error).__name__}: {error}", error)
            return False

    def health(self) -> str:
        with self._lock:
            if self._failure:
                return self._failure
        if self._loaded is None:
            return "The executor has not started."
        if self._worker is not None and not self._worker.is_alive():
            return "The executor's worker thread has ended."
        return ""

    def stop(self) -> None:
        self._die(STOPPED, None)
        self._inbox.put(None)
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()
        self._loaded = None
        if self._launches:
            release_device()

    def _load_here(self) -> None:
        try:
            if self._spec.threads is not None:
                _compute_on(self._spec.threads)
            self._loaded = self._load(self._spec)
        except BaseException as error:  # noqa: BLE001 - raised again by start, on the thread that called it
            self._start_error = error
        finally:
            self._ready.set()

    def _work(self) -> None:
        self._load_here()
        if self._loaded is None:
            return
        while (handle := self._inbox.get()) is not None:
            if not handle.done() and not self._run(handle):  # done: failed by stop, or by a step before it
                return

    def _launch_ready(self) -> None:
        """Launch what is open, in order, up to a step whose masks are not there yet."""
        for handle in list(self._open):
            if handle.pending is None:
                self._launch(handle)
            if not handle.lets_others_start:
                return

    def _launch(self, handle: LocalStepHandle) -> None:
        assert self._loaded is not None
        assert isinstance(self._loaded.runner, DeviceRunner)
        try:
            handle.pending = self._loaded.runner.launch(handle.plan, handle.wait_for_masks)
        except Exception as error:  # as in _run
            log.exception("the executor cannot go on")
            self._die(f"The executor failed in step {handle.plan.step_id}: {type(error).__name__}: {error}", error)

    def _compute(self, wanted: LocalStepHandle) -> None:
        """Run what is open up to ``wanted``."""
        for handle in list(self._open):
            if not self._run(handle) or handle is wanted:
                return

    def _run(self, handle: LocalStepHandle) -> bool:
        """Carry out one plan; False when the executor died of it."""
        assert self._loaded is not None
        try:
            if handle.pending is not None:
                result = handle.pending.finish()
            else:
                result = self._loaded.runner.run(handle.plan, handle.wait_for_masks)
        except Exception as error:  # the executor's boundary: every open handle carries it
            log.exception("the executor cannot go on")
            self._die(f"The executor failed in step {handle.plan.step_id}: {type(error).__name__}: {error}", error)
            return False
        with self._lock:
            self._open.pop(handle, None)
        handle.complete(result)
        return True

    def _die(self, message: str, cause: BaseException | None) -> None:
        """No further step runs; every step in flight is answered. The first reason stays."""
        with self._lock:
            if not self._failure:
                self._failure, self._cause = message, cause
            open_handles, self._open = self._open, {}
        for handle in open_handles:
            handle.fail(message, cause)


def _compute_on(num_threads: int) -> None:
    """Threads of both libraries that compute, the calling one included."""
    torch.set_num_threads(num_threads)
    set_num_threads(num_threads)
