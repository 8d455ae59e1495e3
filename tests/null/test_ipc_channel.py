"""Client and server over real sockets, with a scripted engine behind the server."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time

import msgspec
import pytest
import zmq

from penstock.errors import ConfigError, EngineDeadError, NoBackendError
from penstock.ipc import codec
from penstock.ipc.channel import BACKLOG_MESSAGES, Writer, make_reader
from penstock.ipc.client import IpcClient
from penstock.ipc.endpoints import to_client, to_engine
from penstock.ipc.server import IpcServer
from penstock.types.control import CheckIntegrity, ControlReply, ResetPrefixCache
from penstock.types.decision import Decision
from penstock.types.facts import EngineInfo, ModelFacts, PlatformFacts
from penstock.types.output import EngineStats, FailureKind, FinishReason, OutputBatch, Terminal, TokenUpdate
from penstock.types.request import GenerateRequest, SamplingParams

INFO = EngineInfo(
    model=ModelFacts(name="m", source="", format="mock", architecture="", family="", identity="i",
                     num_parameters=0, weight_bytes=0),
    platform=PlatformFacts(name="cpu", machine="x"),
    max_model_len=64, max_num_seqs=2, num_blocks=(4,), block_tokens=(16,),
)  # fmt: skip


class ScriptedEngine:
    """An inbox that answers every request with its prompt, one token per batch, then a terminal."""

    def __init__(self, server):
        self.server = server
        self.aborted = []
        self.submitted = []
        self.stopped = threading.Event()
        self.mute = False

    def submit(self, request):
        self.submitted.append(request.request_id)
        if self.mute:
            return
        for token in request.prompt_token_ids:
            self.server.emit(OutputBatch(updates=(TokenUpdate(request.request_id, (token,)),)))
        end = Terminal(request.request_id, FinishReason.STOP)
        self.server.emit(OutputBatch(terminals=(end,), stats=EngineStats(num_steps=len(self.submitted))))

    def abort(self, request_ids):
        self.aborted += request_ids
        ends = tuple(Terminal(request_id, FinishReason.ABORT) for request_id in request_ids)
        self.server.emit(OutputBatch(terminals=ends))

    def control(self, command, reply):
        reply(ControlReply(message=type(command).__name__))

    def stop(self):
        self.stopped.set()


class Collected:
    def __init__(self):
        self.tokens = []
        self.terminals = []
        self.ended = asyncio.Event()

    def __call__(self, updates, terminal):
        self.tokens += [token for update in updates for token in update.token_ids]
        if terminal is not None:
            self.terminals.append(terminal)
            self.ended.set()


def request(request_id, tokens=(1, 2, 3)):
    return GenerateRequest(request_id=request_id, prompt_token_ids=tuple(tokens), sampling=SamplingParams())


def with_engine(scenario, *, health=lambda: "", mute=False, **client_options):
    """Run scenario(client, engine) against a server in a thread of this process."""
    engines = []

    def serve(address):
        server = IpcServer(address)
        server.greet()
        assert server.receive_order() == b"order"
        server.progress("working")
        engine = ScriptedEngine(server)
        engine.mute = mute
        engines.append(engine)
        server.ready(INFO)
        server.listen(engine, health)
        engine.stopped.wait(60)
        server.close()

    async def main():
        lines = []
        client = IpcClient(on_progress=lines.append, **client_options)
        thread = threading.Thread(target=serve, args=(client.address,))
        thread.start()
        try:
            assert await client.start(b"order") == INFO == client.info
            assert lines == ["working"]
            await scenario(client, engines[0])
        finally:
            await client.close()
            engines[0].stopped.set()
            await asyncio.to_thread(thread.join, 30)
        assert not thread.is_alive()
        assert not os.path.exists(client.address)

    asyncio.run(main())


def test_requests_stream_in_order_and_end_once():
    async def scenario(client, engine):
        everything = {}
        for _ in range(50):
            request_id = client.new_request_id()
            everything[request_id] = Collected()
            client.submit(request(request_id, range(request_id, request_id + 20)), everything[request_id])
        await asyncio.gather(*(collected.ended.wait() for collected in everything.values()))
        for request_id, collected in everything.items():
            assert collected.tokens == list(range(request_id, request_id + 20))
            assert [end.reason for end in collected.terminals] == [FinishReason.STOP]
        assert client.stats().num_steps == 50

    with_engine(scenario)


def test_only_this_user_can_enter_the_sockets_directory_and_no_two_engines_share_one():
    async def scenario(client, engine):
        assert stat.S_IMODE(os.stat(client.address).st_mode) == 0o700
        other = IpcClient()
        assert other.address != client.address
        await other.close()

    with_engine(scenario)


def test_abort_reaches_the_engine_and_the_request_still_gets_its_end():
    async def scenario(client, engine):
        collected = Collected()
        client.submit(request(7), collected)
        client.abort([7])
        await collected.ended.wait()
        assert engine.aborted == [7]
        assert [end.reason for end in collected.terminals] == [FinishReason.ABORT]

    with_engine(scenario, mute=True)


def test_control_commands_are_answered_to_the_caller_that_asked():
    async def scenario(client, engine):
        replies = await asyncio.gather(client.control(ResetPrefixCache()), client.control(CheckIntegrity()))
        assert [reply.message for reply in replies] == ["ResetPrefixCache", "CheckIntegrity"]

    with_engine(scenario)


def test_an_open_id_cannot_be_submitted_again():
    async def scenario(client, engine):
        collected = Collected()
        client.submit(request(7), collected)
        with pytest.raises(ValueError, match="7 is already open"):
            client.submit(request(7), Collected())
        client.abort([7])
        await collected.ended.wait()
        assert len(collected.terminals) == 1

    with_engine(scenario, mute=True)


def test_a_broken_sink_does_not_silence_the_others(caplog):
    def broken(updates, terminal):
        raise RuntimeError("sink bug")

    async def scenario(client, engine):
        good = Collected()
        client.submit(request(1), broken)
        client.submit(request(2), good)
        await good.ended.wait()
        assert good.tokens == [1, 2, 3]

    with_engine(scenario)
    assert "sink bug" in caplog.text


def test_an_engine_that_exits_ends_every_request_exactly_once_and_refuses_new_ones():
    async def scenario(client, engine):
        open_requests = [Collected() for _ in range(3)]
        for collected in open_requests:
            client.submit(request(client.new_request_id()), collected)
        hanging = asyncio.ensure_future(client.control(CheckIntegrity()))
        engine.control = lambda command, reply: None
        client.engine_exited("The engine process was killed.")
        client.engine_exited("A second notice.")
        await asyncio.gather(*(collected.ended.wait() for collected in open_requests))
        for collected in open_requests:
            (end,) = collected.terminals
            assert (end.reason, end.failure) == (FinishReason.ERROR, FailureKind.ENGINE_DEAD)
            assert end.message == "The engine process was killed."
        assert client.health() == "The engine process was killed."
        with pytest.raises(EngineDeadError, match="was killed"):
            client.submit(request(99), Collected())
        with pytest.raises(EngineDeadError, match="was killed"):
            await client.control(CheckIntegrity())
        await asyncio.wait([hanging])

    with_engine(scenario, mute=True)


def test_what_a_dying_engine_wrote_is_delivered_before_its_requests_fail():
    async def scenario(client, engine):
        collected = Collected()
        client.submit(request(1), collected)
        while not engine.submitted:
            await asyncio.sleep(0.001)
        engine.server.emit(OutputBatch(updates=(TokenUpdate(1, (5,)),), terminals=(Terminal(1, FinishReason.LENGTH),)))
        client.engine_exited("gone")
        await collected.ended.wait()
        assert collected.tokens == [5]
        assert [end.reason for end in collected.terminals] == [FinishReason.LENGTH]

    with_engine(scenario, mute=True)


def test_an_engine_waits_for_a_client_that_is_behind_and_nothing_is_lost():
    padding = (0,) * 50_000  # as a socket takes many small messages of its own
    number = 8 * BACKLOG_MESSAGES
    sent = []

    async def scenario(client, engine):
        def emit():
            for token in range(number):
                engine.server.emit(OutputBatch(updates=(TokenUpdate(1, (token, *padding)),)))
                sent.append(token)
            engine.server.emit(OutputBatch(terminals=(Terminal(1, FinishReason.LENGTH),)))

        collected = Collected()
        client.submit(request(1), collected)
        while not engine.submitted:
            await asyncio.sleep(0.001)
        thread = threading.Thread(target=emit)
        thread.start()
        before = -1
        while len(sent) > before:  # the loop of this client stands still, and so does the engine at last
            before = len(sent)
            time.sleep(0.3)
        assert before < number
        await collected.ended.wait()
        thread.join()
        assert [token for token in collected.tokens if token] == list(range(1, number))
        assert len(collected.tokens) == number * (1 + len(padding))

    with_engine(scenario, mute=True)


def test_a_client_that_ends_frees_an_engine_that_waits_for_it():
    async def scenario(client, engine):
        client.submit(request(1), Collected())
        while not engine.submitted:
            await asyncio.sleep(0.001)

        def emit():
            for _ in range(8 * BACKLOG_MESSAGES):
                engine.server.emit(OutputBatch(updates=(TokenUpdate(1, (0,) * 50_000),)))

        thread = threading.Thread(target=emit)
        thread.start()
        await client.close()
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()

    with_engine(scenario, mute=True)


def test_last_words_become_the_reason():
    async def scenario(client, engine):
        collected = Collected()
        client.submit(request(1), collected)
        engine.server.failed(RuntimeError("the blocks do not add up"))
        await collected.ended.wait()
        assert collected.terminals[0].message == "the blocks do not add up" == client.health()

    with_engine(scenario, mute=True)


def test_silence_is_death():
    async def scenario(client, engine):
        collected = Collected()
        client.submit(request(1), collected)
        engine.server._closing = True  # the heartbeat ends, the process lives
        await collected.ended.wait()
        assert collected.terminals[0].failure is FailureKind.ENGINE_DEAD
        assert "silent" in client.health()

    with_engine(scenario, mute=True, silence_limit_s=0.05)


def test_the_engines_own_health_is_told():
    async def scenario(client, engine):
        while client.health() != "a GPU is hot":
            await asyncio.sleep(0.001)

    with_engine(scenario, health=lambda: "a GPU is hot")


def raw_engine(address, messages):
    """Send bytes as if from an engine."""
    context = zmq.Context()
    writer = Writer(context, to_client(address), bind=False)
    reader = make_reader(context, to_engine(address), bind=False)
    for message in messages:
        writer.send(message)
    writer.close(linger_ms=1000)
    reader.close(linger=0)
    context.term()


def start_against(messages):
    async def main():
        client = IpcClient()
        try:
            sending = asyncio.to_thread(raw_engine, client.address, messages)
            starting = asyncio.ensure_future(client.start(b""))
            await sending
            return await starting
        finally:
            await client.close()

    return asyncio.run(main())


def test_a_client_refuses_an_engine_of_another_version():
    with pytest.raises(EngineDeadError, match=r"version 99 .* two installations"):
        start_against([msgspec.msgpack.encode(["hello", 99, "anything"])])


def test_a_server_refuses_a_client_of_another_version():
    async def main():
        client = IpcClient()
        server = IpcServer(client.address)
        server.greet()
        order = asyncio.ensure_future(asyncio.to_thread(server.receive_order))
        await client._hello
        while not client._writer.send(msgspec.msgpack.encode(["start", 99, b"", 1])):
            await asyncio.sleep(0.001)
        with pytest.raises(EngineDeadError, match="version 99"):
            await order
        server.close()
        await client.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("failed", "expected"),
    [
        (codec.Failed("ConfigError", "max_model_len is too large."), ConfigError),
        (codec.Failed("RuntimeError", "bad luck"), EngineDeadError),
        (codec.Failed("NoBackendError", "nobody can run", Decision("attention", None, "w")), NoBackendError),
    ],
)
def test_a_failed_start_is_reported_in_the_engines_own_words(failed, expected):
    hello = codec.encode(codec.Hello(codec.PROTOCOL_VERSION, 1))
    with pytest.raises(expected) as caught:
        start_against([hello, codec.encode(failed)])
    assert str(caught.value) == failed.message


def test_unknown_messages_are_ignored(caplog):
    async def scenario(client, engine):
        raw = engine.server._writers[0]
        raw.send(b"\xc1 not msgpack")
        raw.send(msgspec.msgpack.encode(["newer", 1, 2]))
        client._writer.send(b"\xc1 not msgpack either")
        client._writer.send(msgspec.msgpack.encode(["submit", {"request_id": "x"}]))
        collected = Collected()
        client.submit(request(1), collected)
        await collected.ended.wait()
        assert collected.tokens == [1, 2, 3]

    with_engine(scenario)
    assert "was not understood" in caplog.text
    assert "could not be handled" in caplog.text


def test_an_unknown_control_command_is_answered_with_no():
    async def scenario(client, engine):
        call = client._loop.create_future()
        client._calls[77] = call
        client._writer.send(codec.encode(codec.Control(77, "Explode", msgspec.Raw(msgspec.msgpack.encode({})))))
        reply = await call
        assert not reply.ok
        assert "Explode" in reply.message

    with_engine(scenario)


def test_a_dead_engine_is_unhealthy_with_its_first_sentence_and_stays_so():
    """The executor died inside a living process: nobody waits for the next heartbeat to learn of it, and one that was
    on its way does not take it back."""

    async def scenario(client, engine):
        collected = Collected()
        client.submit(request(1), collected)
        end = Terminal(1, FinishReason.ERROR, FailureKind.ENGINE_DEAD, "the device is gone")
        engine.server.emit(OutputBatch(terminals=(end,)))
        await collected.ended.wait()
        assert client.health() == "the device is gone"
        engine.server._send(codec.Heartbeat(""))
        assert (await client.control(ResetPrefixCache())).ok  # what came before it has been read
        assert client.health() == "the device is gone"

    with_engine(scenario, mute=True)


def test_the_gauges_of_a_dead_engine_are_zero_and_its_counters_stay():
    async def scenario(client, engine):
        collected = Collected()
        client.submit(request(1), collected)
        busy = EngineStats(num_running=1, num_waiting=2, num_held=3, kv_usage=0.5, num_steps=4, generation_tokens=5)
        engine.server.emit(OutputBatch(updates=(TokenUpdate(1, (9,)),), stats=busy))
        while client.stats() != busy:
            await asyncio.sleep(0.001)
        client.engine_exited("the process is gone")
        await collected.ended.wait()
        assert client.stats() == EngineStats(num_steps=4, generation_tokens=5)

    with_engine(scenario, mute=True)
