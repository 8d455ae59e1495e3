"""Invariants over scheduler, KV and transfers: IntegrityError names every one that does not hold. O(everything)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.core.kv.groups import RequestBlocks
from penstock.core.kv.manager import KvManager
from penstock.core.requests import RequestState, RequestStatus
from penstock.core.scheduler.scheduler import Scheduler
from penstock.core.transfers import TransferTracker
from penstock.errors import IntegrityError


def check_core(
    scheduler: Scheduler,
    transfers: TransferTracker,
    requests: Iterable[RequestState],
    held: Iterable[RequestState],
    in_flight_rows: Sequence[RequestState],
) -> None:
    """``requests`` are those that owe a terminal, ``held`` those that only wait for transfers."""
    found: list[str] = []
    open_requests = list(requests)
    for request in open_requests:
        found += _request_violations(request, scheduler, in_flight_rows)
    for request in held:
        if request.status is not RequestStatus.HELD or not request.num_jobs:
            found.append(f"request {request.id} is held as {request.status.value} with {request.num_jobs} jobs")
    running = [request for request in open_requests if request.status is RequestStatus.RUNNING]
    if sorted(scheduler.running, key=lambda r: r.order) != scheduler.running:
        found.append("residents are not in order")
    if {r.id for r in running} != {r.id for r in scheduler.running}:
        found.append("residents and running requests differ")
    queued = sum(r.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED) for r in open_requests)
    if queued != len(scheduler.waiting):
        found.append(f"{queued} requests wait for a seat, the queue has {len(scheduler.waiting)}")
    constrained = sum(r.constraint is not None and r.status is not RequestStatus.WAITING_GRAMMAR for r in open_requests)
    if constrained != scheduler.num_constrained:
        found.append(f"{constrained} requests have a constraint, the scheduler counts {scheduler.num_constrained}")
    found += _block_violations(scheduler.kv, transfers, running)
    if found:
        raise IntegrityError("; ".join(found))
    scheduler.seats.check([request.seat for request in running])


def _request_violations(request: RequestState, scheduler: Scheduler, rows: Sequence[RequestState]) -> list[str]:
    found: list[str] = []
    name = f"request {request.id}"
    if not request.is_open:
        found.append(f"{name} is {request.status.value} but still listed as open")
    if request.in_flight != sum(row is request for row in rows):
        found.append(f"{name} counts {request.in_flight} rows in flight, plans have another number")
    if request.known > request.max_known:
        found.append(f"{name} has {request.known} tokens, at most {request.max_known} are allowed")
    if (request.id in scheduler.postponed) != (request.status is RequestStatus.WAITING_KV):
        found.append(f"{name} is {request.status.value}, the list of postponed requests disagrees")
    if request.status is RequestStatus.RUNNING:
        if not request.computed <= request.planned <= request.blocks.reserved:
            found.append(
                f"{name}: computed {request.computed}, planned {request.planned} and reserved "
                f"{request.blocks.reserved} tokens are not in this order"
            )
        if request.expected < request.known or request.computed > request.known:
            found.append(f"{name}: {request.known} known tokens, {request.expected} expected")
        found += _table_violations(name, request.blocks, scheduler.kv, request.computed)
    elif any(table.blocks for table in request.blocks.tables):
        found.append(f"{name} is {request.status.value} but has blocks")
    return found


def _table_violations(name: str, blocks: RequestBlocks, kv: KvManager, computed: int) -> list[str]:
    found: list[str] = []
    for group, table in zip(kv.groups, blocks.tables, strict=True):
        if table.first > group.first_needed(computed):
            found.append(f"{name} has freed blocks of group {group.spec.name} that it still reads")
        if any(block < 0 for block in table.live) or any(block >= 0 for block in table.blocks[: table.first]):
            found.append(f"{name} has holes in its table of group {group.spec.name}")
        if table.sealed > computed // group.size:
            found.append(f"{name} has sealed unconfirmed tokens in group {group.spec.name}")
    return found


def _block_violations(kv: KvManager, transfers: TransferTracker, running: Sequence[RequestState]) -> list[str]:
    references = [[0] * pool.num_blocks for pool in kv.pools]
    for request in running:
        for group, table in zip(kv.groups, request.blocks.tables, strict=True):
            for block in table.live:
                references[group.pool][block] += 1
    transfers.add_references(references)
    return [
        f"pool {index}: {text}" for index, pool in enumerate(kv.pools) for text in pool.violations(references[index])
    ]
