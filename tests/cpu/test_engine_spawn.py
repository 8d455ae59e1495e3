"""The engine process lives and dies with its parent, and every death is told. On the mock engine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from penstock.config.flags import engine_config_from
from penstock.engine.order import EngineOrder
from penstock.engine.spawn import EngineProcess
from penstock.errors import ConfigError, EngineDeadError
from penstock.ipc import codec
from penstock.types.output import FailureKind, FinishReason
from penstock.types.request import GenerateRequest, SamplingParams

ORDER = EngineOrder(config=engine_config_from(max_model_len=100_000), mock=True)


class Collected:
    def __init__(self):
        self.tokens = []
        self.terminals = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    def __call__(self, updates, terminal):
        self.tokens += [token for update in updates for token in update.token_ids]
        self.begun.set()
        if terminal is not None:
            self.terminals.append(terminal)
            self.ended.set()


def submit_endless(client):
    collected = Collected()
    request = GenerateRequest(
        request_id=client.new_request_id(),
        prompt_token_ids=(1, 2, 3),
        sampling=SamplingParams(max_tokens=90_000, ignore_eos=True),
    )
    client.submit(request, collected)
    return collected


def with_process(scenario, order=ORDER):
    async def main():
        process = EngineProcess()
        try:
            await process.client.start(order.encode())
            await scenario(process)
        finally:
            await process.client.close()
        assert process.child.returncode is not None
        assert not psutil.pid_exists(process.child.pid)
        return process.child.returncode

    return asyncio.run(main())


def test_an_engine_that_is_asked_to_stop_exits_with_zero():
    async def scenario(process):
        assert process.child.returncode is None

    assert with_process(scenario) == 0


def test_killing_the_engine_in_the_middle_of_streams_ends_each_of_them_once():
    async def scenario(process):
        client = process.client
        streams = [submit_endless(client) for _ in range(5)]
        await asyncio.gather(*(stream.begun.wait() for stream in streams))
        os.kill(process.child.pid, signal.SIGKILL)
        await asyncio.gather(*(stream.ended.wait() for stream in streams))
        for stream in streams:
            (end,) = stream.terminals
            assert (end.reason, end.failure) == (FinishReason.ERROR, FailureKind.ENGINE_DEAD)
            assert "SIGKILL" in end.message
        assert "SIGKILL" in client.health()
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            submit_endless(client)

    assert with_process(scenario) == -signal.SIGKILL


def test_signals_to_the_whole_group_leave_the_decision_to_the_parent():
    async def scenario(process):
        stream = submit_endless(process.client)
        await stream.begun.wait()
        os.kill(process.child.pid, signal.SIGINT)
        os.kill(process.child.pid, signal.SIGTERM)
        before = len(stream.tokens)
        while len(stream.tokens) < before + 100:
            await asyncio.sleep(0.001)
        assert process.child.returncode is None

    assert with_process(scenario) == 0


def test_an_id_that_is_used_twice_on_the_wire_disturbs_nobody():
    async def scenario(process):
        stream = submit_endless(process.client)
        await stream.begun.wait()
        twin = GenerateRequest(request_id=1, prompt_token_ids=(1,), sampling=SamplingParams(max_tokens=1))
        process.client._send(codec.encode(codec.Submit((twin,))))
        before = len(stream.tokens)
        while len(stream.tokens) < before + 100:
            await asyncio.sleep(0.001)
        assert not stream.terminals
        assert process.client.health() == ""

    assert with_process(scenario) == 0


def test_an_engine_that_cannot_start_says_why_in_its_own_words():
    order = EngineOrder(config=engine_config_from(max_num_seqs=8, max_num_batched_tokens=4), mock=True)

    async def scenario(process):
        raise AssertionError("it started")

    with pytest.raises(ConfigError, match="max_num_batched_tokens is 4, but max_num_seqs is 8"):
        with_process(scenario, order)


def test_a_process_that_dies_before_it_speaks_fails_the_start():
    async def main():
        process = EngineProcess(preload="a_module_that_does_not_exist")
        with pytest.raises(EngineDeadError, match="a_module_that_does_not_exist"):
            await process.client.start(ORDER.encode())
        await process.client.close()
        killed = EngineProcess()
        os.kill(killed.child.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            await killed.client.start(ORDER.encode())
        await killed.client.close()

    asyncio.run(main())


def test_closing_before_the_engine_is_ready_does_not_wait_for_it():
    async def main():
        process = EngineProcess()
        await process.client.close()
        assert process.child.returncode == -signal.SIGKILL

    asyncio.run(main())


PARENT = """
import asyncio, sys
from penstock.engine.order import EngineOrder
from penstock.engine.spawn import EngineProcess

async def main():
    process = EngineProcess()
    await process.client.start(EngineOrder(mock=True).encode())
    print(process.child.pid, process.client.address, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_an_engine_does_not_outlive_a_parent_that_was_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        pid, address = parent.stdout.readline().split()
        engine = psutil.Process(int(pid))
        assert engine.is_running()
        parent.kill()
        parent.wait()
    engine.wait(timeout=60)
    assert not os.path.exists(address)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_the_mock_engines_process_loads_no_torch():
    async def scenario(process):
        assert "libtorch" not in Path(f"/proc/{process.child.pid}/maps").read_text()

    with_process(scenario)
