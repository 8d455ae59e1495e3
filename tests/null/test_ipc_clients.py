"""Several clients of one engine: the limit on what is open is kept where all of them are seen, per caller's request."""

from __future__ import annotations

import asyncio
import threading

import pytest
from test_ipc_channel import INFO

from penstock.ipc.client import IpcClient
from penstock.ipc.endpoints import PrivateEndpoints
from penstock.ipc.server import IpcServer
from penstock.types.control import CheckIntegrity, ControlReply
from penstock.types.output import FailureKind, FinishReason, OutputBatch, Terminal
from penstock.types.request import GenerateRequest, SamplingParams

MAX_OPEN = 4


class WaitingEngine:
    """An inbox whose requests are open until they are aborted. As a real one it does not know what never came."""

    def __init__(self, server):
        self._server = server
        self.open = set()
        self.stopped = threading.Event()

    def submit(self, request):
        self.open.add(request.request_id)

    def abort(self, request_ids):
        known = self.open.intersection(request_ids)
        self.open -= known
        self._server.emit(OutputBatch(terminals=tuple(Terminal(one, FinishReason.ABORT) for one in known)))

    def control(self, command, reply):
        reply(ControlReply())

    def stop(self):
        self.stopped.set()


class Asked:
    """One caller's request with ``count`` children."""

    def __init__(self, client, count, *, claims=True):
        self.client = client
        self.ids = [client.new_request_id() for _ in range(count)]
        self.ends = []
        if claims:
            client.claim(self.ids)

    def submit(self):
        for request_id in self.ids:
            request = GenerateRequest(request_id=request_id, prompt_token_ids=(1,), sampling=SamplingParams())
            self.client.submit(request, self)
        return self

    def __call__(self, updates, terminal):
        self.ends.append(terminal)

    async def state(self):
        """How many of its children the engine has refused, after it has answered something later."""
        await self.client.control(CheckIntegrity())
        refused = [end for end in self.ends if end.failure is FailureKind.OVERLOADED]
        assert all("--max-queue" in end.message for end in refused)
        return len(refused)


def with_two_clients(scenario):
    engines = []

    def serve(address, other):
        server = IpcServer(address)
        server.greet()
        server.receive_order()
        server.add_clients((other,), MAX_OPEN)
        engine = WaitingEngine(server)
        engines.append(engine)
        server.ready(INFO)
        server.listen(engine, lambda: "")
        engine.stopped.wait(60)
        server.close()

    async def main():
        ends = PrivateEndpoints()
        first = IpcClient(num_clients=2)
        second = IpcClient(endpoints=PrivateEndpoints(ends.address), index=1, num_clients=2)
        thread = threading.Thread(target=serve, args=(first.address, ends.address))
        thread.start()
        try:
            await first.start(b"")
            await second.attach()
            await scenario(first, second, engines[0])
        finally:
            await second.close()
            await first.close()
            engines[0].stopped.set()
            await asyncio.to_thread(thread.join, 30)
            ends.remove()

    asyncio.run(main())


@pytest.mark.parametrize("count", [MAX_OPEN, MAX_OPEN + 1, 10 * MAX_OPEN])
def test_what_is_more_than_the_queue_is_taken_when_nothing_is_open(count):
    async def scenario(first, second, engine):
        large = Asked(first, count).submit()
        assert await large.state() == 0
        assert len(engine.open) == count
        assert await Asked(second, 1, claims=False).submit().state() == 1
        first.abort(large.ids)
        await large.state()
        assert await Asked(second, count).submit().state() == 0

    with_two_clients(scenario)


def test_a_request_is_taken_with_all_of_its_children_or_with_none():
    async def scenario(first, second, engine):
        here, there = Asked(first, 3), Asked(second, 3)
        await asyncio.gather(here.state(), there.state())
        here.submit()
        there.submit()
        refused = await asyncio.gather(here.state(), there.state())
        assert sorted(refused) == [0, 3]
        assert engine.open in (set(here.ids), set(there.ids))
        assert await Asked(first, 1, claims=False).submit().state() == 0
        assert await Asked(first, 1, claims=False).submit().state() == 1

    with_two_clients(scenario)


def test_places_that_were_claimed_and_never_taken_are_given_back():
    async def scenario(first, second, engine):
        given_up, lost = Asked(first, 2), Asked(second, 2)
        await asyncio.gather(given_up.state(), lost.state())
        assert await Asked(first, 1, claims=False).submit().state() == 1
        first.abort(given_up.ids)
        first.client_gone(1)
        assert await Asked(first, 4).submit().state() == 0
        assert len(engine.open) == 4

    with_two_clients(scenario)
