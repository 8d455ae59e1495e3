"""The client contract, over both of its implementations: an engine in this process, and one in its own.

Behind both is the mock engine, which needs no torch.
"""

from __future__ import annotations

import asyncio
import threading

import pytest
from client_fixtures import on_event_loop

from penstock.config.flags import engine_config_from
from penstock.engine.build import build_mock_engine
from penstock.engine.inproc import InProcessClient
from penstock.engine.order import EngineOrder
from penstock.engine.spawn import EngineProcess
from penstock.errors import EngineDeadError
from penstock.ipc.client import IpcClient
from penstock.types.control import CheckIntegrity, ResetPrefixCache
from penstock.types.output import FailureKind, FinishReason
from penstock.types.request import GenerateRequest, SamplingParams

CONFIG = engine_config_from(max_model_len=8192, max_num_seqs=8, check_integrity=True)
MANY = 8000  # tokens that nobody waits for: they would take 16 s


async def in_process():
    loop = asyncio.get_running_loop()
    return InProcessClient(lambda channel: build_mock_engine(CONFIG, channel), on_event_loop(loop))


async def own_process():
    process = EngineProcess()
    try:
        await process.client.start(EngineOrder(config=CONFIG, mock=True).encode())
    except BaseException:
        await process.client.close()
        raise
    return process.client


CLIENTS = {InProcessClient: in_process, IpcClient: own_process}


class Collected:
    """A sink that checks the contract of sinks."""

    def __init__(self):
        self.tokens = []
        self.terminals = []
        self.threads = set()
        self.ended = asyncio.Event()
        self.begun = asyncio.Event()

    def __call__(self, updates, terminal):
        assert not self.terminals, "something follows the terminal"
        assert updates or terminal
        self.threads.add(threading.get_ident())
        self.tokens += [token for update in updates for token in update.token_ids]
        if self.tokens:
            self.begun.set()
        if terminal is not None:
            self.terminals.append(terminal)
            self.ended.set()

    @property
    def end(self):
        (terminal,) = self.terminals
        return terminal


@pytest.fixture(params=list(CLIENTS.values()), ids=[cls.__name__ for cls in CLIENTS])
def run(request):
    """run(scenario): run scenario(client) against a fresh engine."""

    def run(scenario):
        async def main():
            client = await request.param()
            try:
                await scenario(client)
            finally:
                await client.close()

        asyncio.run(main())

    return run


def submit(client, *, num_prompt=5, max_tokens=8, first=1, **sampling):
    collected = Collected()
    request = GenerateRequest(
        request_id=client.new_request_id(),
        prompt_token_ids=tuple(range(first, first + num_prompt)),
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling),
    )
    client.submit(request, collected)
    return request.request_id, collected


def test_an_engine_says_what_it_is(run):
    async def scenario(client):
        assert client.info.max_model_len == 8192
        assert client.info.max_num_seqs == 8
        assert client.info.num_blocks
        assert client.health() == ""

    run(scenario)


def test_a_request_gets_its_tokens_and_one_terminal_on_the_loops_thread(run):
    async def scenario(client):
        request_id, collected = submit(client)
        await collected.ended.wait()
        assert len(collected.tokens) == 8
        assert collected.end.reason is FinishReason.LENGTH
        assert collected.end.request_id == request_id
        assert collected.end.num_output_tokens == 8
        assert collected.end.num_prompt_tokens == 5
        assert collected.threads == {threading.get_ident()}

    run(scenario)


def test_many_requests_at_once_each_get_their_own(run):
    async def scenario(client):
        all_of_them = [submit(client, max_tokens=1 + number % 7, first=number) for number in range(60)]
        await asyncio.gather(*(collected.ended.wait() for _, collected in all_of_them))
        for number, (request_id, collected) in enumerate(all_of_them):
            assert collected.end.request_id == request_id
            assert len(collected.tokens) == 1 + number % 7

    run(scenario)


def test_abort_ends_a_request_with_its_terminal_and_is_harmless_afterwards(run):
    async def scenario(client):
        request_id, collected = submit(client, max_tokens=MANY)
        await collected.begun.wait()
        client.abort([request_id, 10**9])
        await collected.ended.wait()
        assert collected.end.reason is FinishReason.ABORT
        assert len(collected.tokens) < MANY
        client.abort([request_id])
        _, after = submit(client)
        await after.ended.wait()
        assert after.end.reason is FinishReason.LENGTH

    run(scenario)


def test_a_prompt_that_does_not_fit_is_answered_by_its_terminal(run):
    async def scenario(client):
        _, collected = submit(client, num_prompt=9000)
        await collected.ended.wait()
        assert collected.end.reason is FinishReason.ERROR
        assert collected.end.failure is FailureKind.TOO_LONG
        assert collected.tokens == []

    run(scenario)


def test_an_open_id_is_refused_and_its_request_is_not_disturbed(run):
    async def scenario(client):
        request_id, collected = submit(client, max_tokens=200)
        twin = GenerateRequest(request_id=request_id, prompt_token_ids=(1,), sampling=SamplingParams(max_tokens=1))
        with pytest.raises(ValueError, match="already open"):
            client.submit(twin, Collected())
        await collected.ended.wait()
        assert len(collected.tokens) == 200

    run(scenario)


def test_control_commands_are_answered_while_requests_run(run):
    async def scenario(client):
        _, collected = submit(client, max_tokens=100)
        replies = await asyncio.gather(client.control(CheckIntegrity()), client.control(ResetPrefixCache()))
        assert [reply.ok for reply in replies] == [True, True], replies
        await collected.ended.wait()
        assert collected.end.reason is FinishReason.LENGTH

    run(scenario)


def test_stats_arrive_with_the_outputs(run):
    async def scenario(client):
        _, collected = submit(client)
        await collected.ended.wait()
        while client.stats().generation_tokens < 8:
            await asyncio.sleep(0.001)
        assert client.stats().prompt_tokens >= 5

    run(scenario)


def test_close_ends_what_is_open_and_refuses_what_comes_later(run):
    async def scenario(client):
        _, collected = submit(client, max_tokens=MANY)
        await client.close()
        await collected.ended.wait()
        assert (collected.end.reason, collected.end.failure) == (FinishReason.ERROR, FailureKind.ENGINE_DEAD)
        assert len(collected.tokens) < MANY
        assert client.health() != ""
        with pytest.raises(EngineDeadError):
            submit(client)
        with pytest.raises(EngineDeadError):
            await client.control(CheckIntegrity())
        await client.close()

    run(scenario)


def test_a_sink_that_raises_harms_nobody_else(run, caplog):
    def broken(updates, terminal):
        raise RuntimeError("sink bug")

    async def scenario(client):
        request = GenerateRequest(
            request_id=client.new_request_id(), prompt_token_ids=(1, 2), sampling=SamplingParams(max_tokens=3)
        )
        client.submit(request, broken)
        _, collected = submit(client)
        await collected.ended.wait()
        assert len(collected.tokens) == 8

    run(scenario)
    assert "sink bug" in caplog.text
