"""What one step may hold: limits of the core, seats, and the columns of a plan under a token budget."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.kv.manager import Appended
from penstock.core.requests import RequestState
from penstock.core.scheduler.policy import POLICIES
from penstock.errors import IntegrityError
from penstock.types.kv import TransferJob
from penstock.types.plan import Admission, StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreLimits:
    """What the resolver decided for the core.

    ``num_draft_tokens`` counts only when there is a draft source. After ``max_tier_asks`` answers of "later" a request
    computes its prompt rather than wait on: a tier that never makes up its mind must not starve it.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    policy: str = "fcfs"
    prefix_caching: bool = True
    check_integrity: bool = False
    num_draft_tokens: int = 0
    max_tier_asks: int = 1000

    def __post_init__(self) -> None:
        if min(self.max_num_seqs, self.max_num_batched_tokens, self.max_model_len) < 1:
            raise ValueError("max_num_seqs, max_num_batched_tokens and max_model_len must be at least 1")
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {self.policy}")


class SeatPool:
    """Seats of the executor. A seat given back is dropped by the next plan, which may also fill it again."""

    __slots__ = ("_dropped", "_free", "num_seats")

    def __init__(self, num_seats: int) -> None:
        self.num_seats = num_seats
        self._free = list(range(num_seats - 1, -1, -1))
        self._dropped: list[int] = []

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        return self._free.pop()

    def give_back(self, seat: int) -> None:
        self._free.append(seat)
        self._dropped.append(seat)

    def take_dropped(self) -> tuple[int, ...]:
        dropped = tuple(self._dropped)
        self._dropped.clear()
        return dropped

    def check(self, taken: list[int]) -> None:
        """Raises IntegrityError unless free and taken seats together are all seats, each once."""
        if sorted(self._free + taken) != list(range(self.num_seats)):
            raise IntegrityError(f"seats in use {sorted(taken)} and free {sorted(self._free)} are not all seats once")


class PlanBuilder:
    """The columns of one plan while it is made. Row r belongs to ``rows[r]``."""

    __slots__ = (
        "admitted",
        "appended",
        "drafts",
        "has_constraints",
        "has_drafts",
        "num_tokens",
        "prefills",
        "rows",
        "samples",
        "seats",
        "step_id",
        "tokens_left",
    )

    def __init__(self, step_id: int, max_tokens: int, *, has_constraints: bool) -> None:
        self.step_id = step_id
        self.has_constraints = has_constraints  # some request has one
        self.tokens_left = max_tokens
        self.rows: list[RequestState] = []
        self.seats: list[int] = []
        self.num_tokens: list[int] = []
        self.samples: list[bool] = []
        self.drafts: list[tuple[int, ...]] = []
        self.has_drafts = False
        self.admitted: list[Admission] = []
        self.appended: list[tuple[int, int, tuple[int, ...]]] = []
        self.prefills: list[RequestState] = []  # residents whose known tokens are not all planned yet

    def add_row(self, request: RequestState, num_tokens: int, samples: bool, drafts: tuple[int, ...] = ()) -> None:
        """Plan a row and count it on the request."""
        total = num_tokens + len(drafts)
        self.tokens_left -= total
        self.rows.append(request)
        self.seats.append(request.seat)
        self.num_tokens.append(num_tokens)
        self.samples.append(samples)
        self.drafts.append(drafts)
        self.has_drafts = self.has_drafts or bool(drafts)
        request.planned += total
        request.in_flight += 1
        request.planned_in = self.step_id
        if samples:
            request.expected += 1
            request.decoding = True

    def append_blocks(self, request: RequestState, appended: Appended) -> None:
        for group, block_ids in appended:
            self.appended.append((request.seat, group, block_ids))

    def _masked_rows(self) -> tuple[int, ...]:
        return tuple(
            row
            for row, (request, samples) in enumerate(zip(self.rows, self.samples, strict=True))
            if samples and request.constraint is not None
        )

    def finish(self, dropped: tuple[int, ...], transfers: tuple[TransferJob, ...]) -> StepPlan:
        return StepPlan(
            step_id=self.step_id,
            dropped=dropped,
            admitted=tuple(self.admitted),
            appended=tuple(self.appended),
            row_seats=tuple(self.seats),
            row_num_tokens=tuple(self.num_tokens),
            row_samples=tuple(self.samples),
            row_drafts=tuple(self.drafts) if self.has_drafts else (),
            masked_rows=self._masked_rows() if self.has_constraints else (),
            transfers=transfers,
        )
