"""What the core itself costs per step: plan plus result handling on a mock device that takes no time.

Knows the mock's rig, not the core's insides. The device's own share (the mock pretending to compute) is taken out.
Operations are counted as executed bytecodes of the core's files: the same on every machine, and blind to nothing but
loops inside built-ins, which the timing shows.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from penstock.bench.report import Report, spread
from penstock.mock.executor import MockExecutor, MockHandle
from penstock.mock.rig import DecodingRig, full_group, window_group
from penstock.types.control import ControlCommand, ControlReply
from penstock.types.kv import KvCapacity
from penstock.types.plan import Bitmasks, StepPlan
from penstock.types.result import StepResult

TARGET_MS = {1: 0.3, 256: 3.0, 1024: 10.0}  # rows -> most milliseconds per step, the goal on two 2020s server cores
_BLOCK = 16
_WINDOW = 1024


class _TimedHandle:
    __slots__ = ("_handle", "_owner")

    def __init__(self, owner: _TimedExecutor, handle: MockHandle) -> None:
        self._owner = owner
        self._handle = handle

    def masks(self, rows: Sequence[int], bitmasks: Bitmasks) -> None:
        self._handle.masks(rows, bitmasks)

    def done(self) -> bool:
        return self._handle.done()

    def result(self) -> StepResult:
        start = time.perf_counter()
        result = self._handle.result()
        self._owner.seconds += time.perf_counter() - start
        return result


class _TimedExecutor:
    """Adds up the time that the mock takes for itself."""

    def __init__(self, inner: MockExecutor) -> None:
        self._inner = inner
        self.seconds = 0.0

    @property
    def depth(self) -> int:
        return self._inner.depth

    def start(self) -> KvCapacity:
        return self._inner.start()

    def step(self, plan: StepPlan) -> _TimedHandle:
        start = time.perf_counter()
        handle = _TimedHandle(self, self._inner.step(plan))
        self.seconds += time.perf_counter() - start
        return handle

    def control(self, command: ControlCommand) -> ControlReply:
        return self._inner.control(command)

    def idle(self) -> bool:
        return self._inner.idle()

    def health(self) -> str:
        return self._inner.health()

    def stop(self) -> None:
        self._inner.stop()


class CoreBench:
    """``num_rows`` requests in the midst of decoding, about ``context_tokens`` long, in two KV groups.

    Lengths differ within one block, as those of independent requests do: every step some rows cross a boundary.
    """

    def __init__(self, num_rows: int, context_tokens: int, max_steps: int) -> None:
        self._num_rows = num_rows
        longest = context_tokens + max_steps + 4 * _BLOCK
        per_row = -(-longest // _BLOCK) + 2
        groups = (full_group(tokens_per_block=_BLOCK), window_group(_WINDOW, _BLOCK))
        self.executor = _TimedExecutor(MockExecutor(groups, (2 * per_row * num_rows,), depth=2))
        lengths = [context_tokens + row % _BLOCK for row in range(num_rows)]
        self._rig = DecodingRig(self.executor, lengths, longest)

    def step_seconds(self) -> float:
        """One turn of steady decoding, less the mock's share."""
        executor = self.executor
        mocked = executor.seconds
        start = time.perf_counter()
        self._rig.step()
        return time.perf_counter() - start - (executor.seconds - mocked)

    def operations_per_row(self) -> float:
        """Bytecodes of the core per row and step, averaged over a whole block so that boundaries are in."""
        return self.count_operations(_BLOCK) / (_BLOCK * self._num_rows)

    def count_operations(self, num_steps: int) -> int:
        """Bytecodes that the core's files execute in ``num_steps`` turns."""
        count = 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal count
            if event == "call" and "penstock.core" not in frame.f_globals.get("__name__", ""):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            count += event == "opcode"
            return trace

        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # Python 3.12 delivers opcodes only if a frame asked before settrace
        sys.settrace(trace)
        try:
            for _ in range(num_steps):
                self._rig.step()
        finally:
            sys.settrace(before)
        return count


def measure_core(
    num_rows: Sequence[int] = (1, 256, 1024),
    context_tokens: int = 4096,
    num_steps: int = 100,
    command: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure every row count. ``say`` is told what is being done. The garbage collector runs, as in production."""
    rows: list[dict[str, Any]] = []
    for size in num_rows:
        say(f"{size} rows of {context_tokens} tokens")
        bench = CoreBench(size, context_tokens, num_steps + 4 * _BLOCK)
        gc.collect()
        gc.freeze()
        try:
            seconds = [bench.step_seconds() for _ in range(num_steps)]
        finally:
            gc.unfreeze()
        target = TARGET_MS.get(size)
        rows.append(
            {"rows": size}
            | spread("step_ms", seconds)
            | {"target_ms": "" if target is None else target, "bytecodes_per_row": round(bench.operations_per_row(), 1)}
        )
    return Report(
        name="core",
        command=command,
        workload={
            "context_tokens": context_tokens,
            "steps": num_steps,
            "groups": [f"full attention, blocks of {_BLOCK}", f"window of {_WINDOW}, blocks of {_BLOCK}"],
        },
        rows=tuple(rows),
        notes=("Plan plus result handling; the mock device's own time is taken out. Targets are for the median.",),
    )
