"""One request inside the core: its state machine and the few counters from which every other length is derived.

Knows neither the scheduler nor the block pool; they act on it.

    WAITING_GRAMMAR
           |
           |  +-----------> RUNNING -----> HELD
           v  |              |   ^           |
    WAITING <-> WAITING_KV   v   |           v
           |       ^------ PREEMPTED ---> FINISHED   (every state may finish; HELD first while transfers run)
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from penstock.core.kv.groups import RequestBlocks
from penstock.core.ports import Constraint
from penstock.errors import IntegrityError
from penstock.types.request import GenerateRequest

NO_SEAT = -1


class RequestStatus(Enum):
    WAITING_GRAMMAR = "waiting_grammar"  # what its answer must look like is being compiled
    WAITING = "waiting"  # never had a seat
    WAITING_KV = "waiting_kv"  # a tier said later, or a load is in flight
    RUNNING = "running"  # has a seat and blocks
    PREEMPTED = "preempted"  # lost both, will be computed again
    HELD = "held"  # its terminal is out, transfers still read or write its blocks
    FINISHED = "finished"


_S = RequestStatus
LEGAL_TRANSITIONS: Mapping[RequestStatus, frozenset[RequestStatus]] = {
    _S.WAITING_GRAMMAR: frozenset({_S.WAITING, _S.FINISHED}),
    _S.WAITING: frozenset({_S.WAITING_GRAMMAR, _S.RUNNING, _S.WAITING_KV, _S.HELD, _S.FINISHED}),
    _S.WAITING_KV: frozenset({_S.WAITING, _S.PREEMPTED, _S.HELD, _S.FINISHED}),
    _S.RUNNING: frozenset({_S.PREEMPTED, _S.HELD, _S.FINISHED}),
    _S.PREEMPTED: frozenset({_S.RUNNING, _S.WAITING_KV, _S.HELD, _S.FINISHED}),
    _S.HELD: frozenset({_S.FINISHED}),
    _S.FINISHED: frozenset(),
}


class RequestState:
    """Mutable state of one request. Token counts obey, while the request has a seat:

    ``computed <= planned``: confirmed by results, against the longest outcome of all rows in flight;
    ``known <= expected``: tokens known to the core, plus one for every sampling row in flight;
    ``known <= max_known``: prompt plus the most output that the request may have.
    """

    __slots__ = (
        "admitted_at",
        "blocks",
        "computed",
        "constraint",
        "decoding",
        "expected",
        "first_token_at",
        "id",
        "in_flight",
        "max_known",
        "min_known",
        "num_cached_tokens",
        "num_jobs",
        "num_preemptions",
        "num_prompt",
        "order",
        "planned",
        "planned_in",
        "prompt_logprobs_done",
        "request",
        "seat",
        "status",
        "stop_ids",
        "tier_asks",
        "tier_tried",
        "tokens",
    )

    def __init__(self, request: GenerateRequest, order: tuple[int, int], max_known: int, blocks: RequestBlocks) -> None:
        sampling = request.sampling
        self.request = request
        self.id = request.request_id
        self.order = order  # smaller runs first and yields last; fixed for life
        self.status = RequestStatus.WAITING
        self.tokens = list(request.prompt_token_ids)
        self.num_prompt = len(self.tokens)
        self.max_known = max_known
        self.min_known = self.num_prompt + sampling.min_tokens
        self.stop_ids = frozenset(sampling.stop_token_ids)
        self.blocks = blocks
        self.seat = NO_SEAT
        self.computed = 0
        self.planned = 0
        self.expected = self.num_prompt
        self.decoding = False  # every known token is computed or planned but the last: rows of one token follow
        self.in_flight = 0  # rows in plans without result, of this residence or the one before a preemption
        self.planned_in = -1  # step_id of the newest plan that has a row of this request
        self.num_jobs = 0  # transfers in flight
        self.constraint: Constraint | None = None  # what the answer must look like
        self.tier_asks = 0  # times that a tier said later, since the last residence
        self.tier_tried = False  # tiers were asked to the end since the last residence
        self.prompt_logprobs_done = 0  # prompt positions 1..done are with the client
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.admitted_at = 0.0
        self.first_token_at = 0.0

    @property
    def known(self) -> int:
        return len(self.tokens)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def is_open(self) -> bool:
        """Its terminal message is still owed."""
        return self.status is not RequestStatus.HELD and self.status is not RequestStatus.FINISHED

    @property
    def wants_prompt_logprobs(self) -> bool:
        wanted = self.request.sampling.prompt_logprobs is not None
        return wanted and self.prompt_logprobs_done < self.num_prompt - 1

    @property
    def max_hit(self) -> int:
        """Longest prefix that may come from a cache: the last token is always computed, for its logits, and so is
        every position whose prompt log-probabilities are still owed."""
        longest = len(self.tokens) - 1
        return min(longest, self.prompt_logprobs_done) if self.wants_prompt_logprobs else longest

    def move_to(self, status: RequestStatus) -> None:
        """Change state. Raises IntegrityError when the transition is not legal."""
        if status not in LEGAL_TRANSITIONS[self.status]:
            raise IntegrityError(f"request {self.id} cannot go from {self.status.value} to {status.value}")
        self.status = status

    def take_seat(self, seat: int, computed: int) -> None:
        """Begin a residence with ``computed`` tokens already in the blocks."""
        self.move_to(RequestStatus.RUNNING)
        self.seat = seat
        self.computed = self.planned = computed
        self.expected = len(self.tokens)
        self.decoding = False

    def leave_seat(self) -> int:
        """End a residence; rows in flight may still bring tokens. Returns the seat."""
        seat, self.seat = self.seat, NO_SEAT
        self.computed = self.planned = 0
        self.decoding = False
        self.tier_asks = 0
        self.tier_tried = False
        return seat
