"""What goes wrong in a mock executor, said in advance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


def _keep_all(job_id: int) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class MockFaults:
    """``step`` numbers are step ids. Everything defaults to: nothing goes wrong."""

    start_error: str = ""  # start() raises EngineDeadError with this sentence
    die_at_step: int | None = None  # the result of this step and all later ones raise EngineDeadError
    failed_steps: frozenset[int] = frozenset()  # every row of these steps fails
    failed_requests: Mapping[int, str] = field(default_factory=dict)  # rows of these requests fail, with a sentence
    stalls: Mapping[int, float] = field(default_factory=dict)  # extra seconds of these steps
    transfer_steps: int = 1  # a transfer is reported by the plan this many steps after its own
    transfer_ok: Callable[[int], bool] = _keep_all  # by job id


NO_FAULTS = MockFaults()
