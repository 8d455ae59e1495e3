"""The scheduler: who computes how many tokens in the next step, and whose blocks pay for it.

Knows no executor, no clock and no output; a request that can never fit is handed to a callback. One pass:

1. Decodes first, in order: one token (plus drafts) for every resident whose prompt is planned, also when the tokens
   of the rows before are not known yet. A resident that lacks a block takes it from the youngest resident.
2. Then prompts: chunks under what is left of the token budget. A chunk that lacks blocks shrinks.
3. Then admissions, unless somebody was preempted in this pass.

Why it cannot livelock: residents are kept in a total order that never changes. Blocks are taken from the last in
order only, so the first can always take what it needs; a younger one that finds none waits where it is, with its
blocks, and is preempted only when an older one needs them. A resident that is alone, with nothing in flight or
pinned that could give blocks back, has outgrown the cache and fails. Admission keeps one block per resident and
group in reserve, and the room that admitted prompts still need, so that it does not cause the next preemption.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from operator import attrgetter

from penstock.core.kv.manager import KvManager
from penstock.core.ports import DraftSource
from penstock.core.requests import RequestState, RequestStatus
from penstock.core.scheduler.budget import CoreLimits, PlanBuilder, SeatPool
from penstock.core.scheduler.policy import WaitQueue
from penstock.core.transfers import TierAnswer, TransferTracker
from penstock.types.plan import Admission, StepPlan

_ORDER = attrgetter("order")


class Scheduler:
    """Owns queue, residents and seats. ``outgrown`` is called with a resident or queued request that cannot fit."""

    def __init__(
        self,
        kv: KvManager,
        transfers: TransferTracker,
        limits: CoreLimits,
        *,
        outgrown: Callable[[RequestState], None],
        drafter: DraftSource | None = None,
    ) -> None:
        self.kv = kv
        self.transfers = transfers
        self.limits = limits
        self.seats = SeatPool(limits.max_num_seqs)
        self.waiting = WaitQueue()
        self.running: list[RequestState] = []  # in order
        self.postponed: dict[int, RequestState] = {}  # WAITING_KV
        self.num_constrained = 0  # open requests that have a constraint
        self.num_preemptions = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self._outgrown = outgrown
        self._drafter = drafter if limits.num_draft_tokens else None
        self._preempted_in_pass = False
        self._blocked: tuple[int, ...] | None = None  # what an unsuccessful admission saw
        self._groups_in_pool = [0] * len(kv.pools)
        for group in kv.groups:
            self._groups_in_pool[group.pool] += 1

    # -- membership ----------------------------------------------------------------------------------------------

    def add(self, request: RequestState) -> None:
        if request.constraint is not None:
            self.num_constrained += 1
        self.waiting.push(request)

    def remove(self, request: RequestState, *, compact: bool = True) -> None:
        """Take an ending request out, whatever its state; its blocks and seat are free for the next plan.

        With ``compact`` false the caller promises ``compact_running`` before the next pass.
        """
        if request.status is RequestStatus.WAITING_GRAMMAR:
            return
        if request.constraint is not None:
            self.num_constrained -= 1
        if request.status is RequestStatus.RUNNING:
            self.kv.release(request.blocks)
            self.seats.give_back(request.leave_seat())
            if compact:
                self.running.remove(request)
        elif request.status is RequestStatus.WAITING_KV:
            del self.postponed[request.id]
        else:
            self.waiting.forget(request)

    def compact_running(self) -> None:
        self.running = [request for request in self.running if request.status is RequestStatus.RUNNING]

    def requeue(self, request: RequestState) -> None:
        """A load has ended or a tier may have an answer: back to the queue, at the request's own place."""
        del self.postponed[request.id]
        request.move_to(RequestStatus.PREEMPTED if request.num_preemptions else RequestStatus.WAITING)
        self.waiting.push(request)

    def preempt(self, request: RequestState) -> None:
        """Take the youngest resident's seat and blocks. Tokens stay; KV is computed again, or hit, later."""
        assert self.running[-1] is request
        self.running.pop()
        request.move_to(RequestStatus.PREEMPTED)
        self.kv.release(request.blocks)
        self.seats.give_back(request.leave_seat())
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._preempted_in_pass = True
        self.waiting.push(request)

    # -- one pass ------------------------------------------------------------------------------------------------

    def schedule(self, step_id: int, *, allow_empty: bool) -> tuple[StepPlan, list[RequestState]] | None:
        """The next plan and the requests of its rows; None when there is nothing to do and it may not be empty."""
        for request in [r for r in self.postponed.values() if r.num_jobs == 0]:
            self.requeue(request)
        build = PlanBuilder(step_id, self.limits.max_num_batched_tokens, has_constraints=self.num_constrained > 0)
        self._preempted_in_pass = False
        self._plan_decodes(build)
        for request in build.prefills:
            if request.status is RequestStatus.RUNNING and build.tokens_left > 0:
                self._plan_chunk(build, request)
        if not self._preempted_in_pass:
            self._admit_waiting(build)
        if not build.rows and not self.transfers.has_unsent and not allow_empty:
            return None
        return build.finish(self.seats.take_dropped(), self.transfers.take_unsent()), build.rows

    def _plan_decodes(self, build: PlanBuilder) -> None:
        # The hot loop: a row that stays inside its block costs a handful of attribute operations. Residents leave
        # ``running`` only from its end while it is iterated.
        step_id, drafter = build.step_id, self._drafter
        rows, seats, num_tokens = build.rows, build.seats, build.num_tokens
        samples, drafts, prefills = build.samples, build.drafts, build.prefills
        tokens_left = build.tokens_left
        for request in self.running:
            if not request.decoding:
                prefills.append(request)
                continue
            planned = request.planned
            if tokens_left <= 0 or request.expected >= request.max_known or planned >= request.max_known:
                continue
            if drafter is not None:
                build.tokens_left = tokens_left
                self._plan_draft_row(build, request, drafter)
                tokens_left = build.tokens_left
                continue
            planned += 1
            if planned > request.blocks.reserved and not self._make_room(build, request, planned):
                self._wait_or_fail(request)
                continue
            request.planned = planned
            request.expected += 1
            request.in_flight += 1
            request.planned_in = step_id
            tokens_left -= 1
            rows.append(request)
            seats.append(request.seat)
            num_tokens.append(1)
            samples.append(True)
            drafts.append(())
        build.tokens_left = tokens_left

    def _plan_draft_row(self, build: PlanBuilder, request: RequestState, drafter: DraftSource) -> None:
        num_unknown = request.expected - len(request.tokens)
        # No row may write a position that the longest allowed request does not have.
        room = request.max_known - request.planned - 1
        limit = min(self.limits.num_draft_tokens, build.tokens_left - 1, room)
        drafts = drafter.propose(request.id, request.tokens, num_unknown, limit) if limit > 0 else ()
        upto = request.planned + 1 + len(drafts)
        if upto > request.blocks.reserved and not self._make_room(build, request, upto):
            drafts, upto = (), request.planned + 1
            if upto > request.blocks.reserved and not self._make_room(build, request, upto):
                self._wait_or_fail(request)
                return
        build.add_row(request, 1, True, drafts)

    def _plan_chunk(self, build: PlanBuilder, request: RequestState) -> None:
        left = len(request.tokens) - request.planned
        if left == 0:
            return
        chunk = min(left, build.tokens_left)
        if not self._make_room(build, request, request.planned + chunk):
            chunk = self._shrink_chunk(build, request, chunk)
            if chunk == 0:
                self._wait_or_fail(request)
                return
        known = request.planned + chunk == len(request.tokens)
        build.add_row(request, chunk, known and len(request.tokens) < request.max_known)

    def _shrink_chunk(self, build: PlanBuilder, request: RequestState, chunk: int) -> int:
        """The largest halving of ``chunk`` that existing blocks and available ones can take; 0 when none."""
        while chunk := chunk // 2:
            appended = self.kv.reserve(request.blocks, request.planned + chunk)
            if appended is not None:
                build.append_blocks(request, appended)
                return chunk
        return 0

    def _make_room(self, build: PlanBuilder, request: RequestState, num_tokens: int) -> bool:
        """Reserve blocks, taking them from younger residents that have no row in this plan yet."""
        while True:
            appended = self.kv.reserve(request.blocks, num_tokens)
            if appended is not None:
                build.append_blocks(request, appended)
                return True
            victim = self.running[-1]
            if victim is request or victim.planned_in == build.step_id:
                return False
            self.preempt(victim)

    def _wait_or_fail(self, request: RequestState) -> None:
        """No block for even one token. Others, results in flight or transfers may give some back; else it is over."""
        alone = len(self.running) == 1
        if alone and request.in_flight == 0 and self.transfers.num_outstanding == 0:
            self._outgrown(request)

    # -- admission -----------------------------------------------------------------------------------------------

    def _admit_waiting(self, build: PlanBuilder) -> None:
        while build.tokens_left > 0 and self.seats.num_free:
            request = self.waiting.peek()
            # A preempted request whose rows are in flight waits for their tokens, and keeps its place meanwhile.
            if request is None or request.in_flight or not self._try_admit(build, request):
                return

    def _try_admit(self, build: PlanBuilder, request: RequestState) -> bool:
        """Admit, postpone or fail the first in the queue. False: it stays, and nobody overtakes it."""
        kv = self.kv
        unplanned = sum(len(r.tokens) - r.planned for r in build.prefills)
        view = (request.id, kv.num_releases, len(self.running), unplanned, build.tokens_left)
        forced = not self.running and self.transfers.num_outstanding == 0
        if view == self._blocked and not forced:
            return False
        hit = kv.lookup(request.blocks, request.tokens, request.max_hit)
        known = len(request.tokens)
        fits = kv.has_room(request.blocks, hit, known + 1, build.tokens_left, self._spare(build))
        if self.transfers.tiers and not request.tier_tried and (fits or forced) and self._postpone(request, hit):
            return True
        if not fits and not forced:
            self._blocked = view
            return False
        self.waiting.pop()
        kv.attach(request.blocks, hit)
        chunk = min(known - hit, build.tokens_left)
        while chunk and kv.reserve(request.blocks, hit + chunk) is None:
            chunk //= 2
        if chunk == 0:
            kv.release(request.blocks)
            self.waiting.push(request)
            if forced:
                self._outgrown(request)
            return forced
        self._seat(build, request, hit, chunk)
        return True

    def _spare(self, build: PlanBuilder) -> list[int]:
        """Blocks per pool that admission leaves alone."""
        spare = [len(self.running) * count for count in self._groups_in_pool]
        for request in build.prefills:
            if request.status is RequestStatus.RUNNING:
                self.kv.add_growth(spare, request.blocks, len(request.tokens), build.tokens_left)
        return spare

    def _postpone(self, request: RequestState, hit: int) -> bool:
        answer = self.transfers.ask(request, hit)
        # One load per residence: what it brought and was evicted again is computed, so that nobody loads forever.
        if answer is TierAnswer.LATER:
            request.tier_asks += 1
            request.tier_tried = request.tier_asks >= self.limits.max_tier_asks
        else:
            request.tier_tried = True
        if answer is TierAnswer.NOTHING:
            return False
        self.waiting.pop()
        request.move_to(RequestStatus.WAITING_KV)
        self.postponed[request.id] = request
        return True

    def _seat(self, build: PlanBuilder, request: RequestState, hit: int, chunk: int) -> None:
        known = len(request.tokens)
        if request.num_preemptions == 0:
            self.prefix_query_tokens += known
            self.prefix_hit_tokens += hit
            request.num_cached_tokens = hit
        request.take_seat(self.seats.take(), hit)
        insort(self.running, request, key=_ORDER)
        tables = request.blocks.tables
        build.admitted.append(
            Admission(
                seat=request.seat,
                request_id=request.id,
                token_ids=tuple(request.tokens),
                num_prompt_tokens=request.num_prompt,
                num_computed=hit,
                sampling=request.request.sampling,
                block_ids=tuple(tuple(table.live) for table in tables),
                first_block=tuple(table.first for table in tables),
            )
        )
        build.add_row(request, chunk, hit + chunk == known and known < request.max_known)
