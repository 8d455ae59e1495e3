"""Who runs first: order keys and the queue of those without a seat. Knows neither blocks nor budgets.

A key is fixed when a request arrives and never changes, also not by preemption. Seats are offered, and blocks are
taken back, by the same total order: the first in order can always take what it needs from the others, so somebody
always progresses, and in first-come order everybody becomes first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

from penstock.core.requests import RequestState, RequestStatus
from penstock.types.request import GenerateRequest

OrderKey = tuple[int, int]
_QUEUED = (RequestStatus.WAITING, RequestStatus.PREEMPTED)


def fcfs_order(request: GenerateRequest, arrival: int) -> OrderKey:
    return (0, arrival)


def priority_order(request: GenerateRequest, arrival: int) -> OrderKey:
    return (request.priority, arrival)


POLICIES: Mapping[str, Callable[[GenerateRequest, int], OrderKey]] = {
    "fcfs": fcfs_order,
    "priority": priority_order,
}


class WaitQueue:
    """Requests that wait for a seat, in order. A request that leaves by another way than ``pop`` is ``forget``-ed;
    its entry goes when it surfaces."""

    __slots__ = ("_heap", "_members")

    def __init__(self) -> None:
        self._heap: list[tuple[OrderKey, RequestState]] = []
        self._members: set[int] = set()

    def __len__(self) -> int:
        return len(self._members)

    def push(self, request: RequestState) -> None:
        self._members.add(request.id)
        heapq.heappush(self._heap, (request.order, request))

    def peek(self) -> RequestState | None:
        heap = self._heap
        while heap:
            request = heap[0][1]
            if request.id in self._members and request.status in _QUEUED:
                return request
            heapq.heappop(heap)
        return None

    def pop(self) -> RequestState:
        request = self.peek()
        assert request is not None
        heapq.heappop(self._heap)
        self._members.remove(request.id)
        return request

    def forget(self, request: RequestState) -> None:
        self._members.discard(request.id)
