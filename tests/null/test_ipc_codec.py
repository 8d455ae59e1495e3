"""Messages survive the wire, and what is not a message is refused."""

from __future__ import annotations

import contextlib
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ipc import codec
from penstock.types.control import CheckIntegrity, ControlCommand, ControlReply, ResetPrefixCache
from penstock.types.decision import Decision, Rejection, Rung
from penstock.types.facts import AcceleratorFacts, EngineInfo, ModelFacts, PlatformFacts
from penstock.types.output import EngineStats, FailureKind, FinishReason, OutputBatch, Terminal, TokenUpdate
from penstock.types.request import GenerateRequest, SamplingParams
from penstock.types.result import TokenLogprobs

INFO = EngineInfo(
    model=ModelFacts(
        name="m", source="/x", format="gguf", architecture="llama", family="llama", identity="abc",
        num_parameters=5, weight_bytes=7, weight_schemes={"q4_1": 7},
    ),
    platform=PlatformFacts(
        name="cpu", machine="x86_64", instruction_sets=("avx2",), libraries={"torch": "2"},
        accelerators=(AcceleratorFacts(name="a", kind="cuda", capability="9.0", memory_bytes=1),),
    ),
    max_model_len=128,
    max_num_seqs=4,
    num_blocks=(8, 9),
    block_tokens=(16, 32),
    decisions=(
        Decision("dtype", "float32", "why", (Rejection("bfloat16", ("slow", "no")),), ("float16",)),
        Decision("linear", "a", "why", rungs=(Rung(64, "few", "read once"), Rung(None, "many", "the rest"))),
    ),
    eos_token_ids=(1, 2),
    settings={"a": "b"},
)  # fmt: skip

REQUEST = GenerateRequest(
    request_id=2**40,
    prompt_token_ids=(1, 2, 3),
    sampling=SamplingParams(
        n=2, logit_bias={5: -1.5}, bad_token_ids=((1, 2), (3,)), stop=("x", "é"), seed=-(2**63), logprobs=3
    ),
    deadline=1.5,
    priority=-3,
    cache_salt="s",
    extra_keys=("k",),
)

FULL_BATCH = OutputBatch(
    updates=(TokenUpdate(1, (4, 5), (TokenLogprobs((4, 9), (-0.5, -1.0), 1),), (TokenLogprobs((1,), (-2.0,), 7),)),),
    terminals=(Terminal(1, FinishReason.ERROR, FailureKind.TOO_LONG, "no", 3, 1, 2, 3, 4, 5.0, 6.0, 7.0, 8.0),),
    stats=EngineStats(num_running=3, kv_usage=0.25),
)

PLAIN_BATCH = OutputBatch(
    updates=(TokenUpdate(7, (5,)), TokenUpdate(2**40, (2**31 - 1,)), TokenUpdate(3, (4, 5))),
    stats=EngineStats(num_running=3),
)


@pytest.mark.parametrize(
    "message",
    [
        codec.Hello(1, 42),
        codec.Progress("loading"),
        codec.Ready(INFO),
        codec.Failed("NoBackendError", "why", Decision("s", None, "w", (Rejection("a", ("b",)),))),
        codec.Reply(3, ControlReply(ok=False, message="m")),
        codec.make_batch(FULL_BATCH),
        codec.make_batch(PLAIN_BATCH),
        codec.Heartbeat(""),
    ],
)
def test_messages_to_the_client_survive(message):
    assert codec.decode_for_client(codec.encode(message)) == message


def test_tokens_with_nothing_else_travel_in_columns():
    message = codec.decode_for_client(codec.encode(codec.make_batch(PLAIN_BATCH)))
    ids, tokens = codec.read_columns(message)
    assert list(ids) == [7, 2**40]
    assert list(tokens) == [5, 2**31 - 1]
    assert message.updates == (TokenUpdate(3, (4, 5)),)
    assert codec.make_batch(FULL_BATCH).request_ids == b""


def test_a_request_with_updates_of_both_kinds_keeps_their_order():
    both = (TokenUpdate(1, (4,)), TokenUpdate(2, (9,)), TokenUpdate(1, (5, 6)))
    assert codec.make_batch(OutputBatch(updates=both)).updates == both
    many = codec.make_batch(OutputBatch(updates=(TokenUpdate(1, (4,)), TokenUpdate(1, (5,)))))
    assert [list(column) for column in codec.read_columns(many)] == [[1, 1], [4, 5]]


@pytest.mark.parametrize("columns", [(b"1234567", b"1234"), (b"12345678", b"123"), (b"12345678", b""), (b"", b"1234")])
def test_columns_of_different_lengths_are_refused(columns):
    with pytest.raises(codec.MessageError, match="columns"):
        codec.read_columns(codec.Batch(*columns))


@pytest.mark.parametrize(
    "message",
    [codec.Start(1, b"\x00\xff"), codec.Claim((1, 2)), codec.Submit((REQUEST,)), codec.Abort((1, 2)), codec.Shutdown()],
)
def test_messages_to_the_engine_survive(message):
    assert codec.decode_for_engine(codec.encode(message)) == message


@pytest.mark.parametrize("command", [command() for command in get_args(ControlCommand)])
def test_every_control_command_survives(command):
    message = codec.decode_for_engine(codec.encode(codec.make_control(7, command)))
    assert isinstance(message, codec.Control)
    assert message.call_id == 7
    assert codec.control_command(message) == command


def test_there_are_control_commands_to_test():
    assert {ResetPrefixCache, CheckIntegrity} <= set(get_args(ControlCommand))


def test_an_unknown_command_is_named():
    with pytest.raises(codec.MessageError, match="Explode"):
        codec.control_command(codec.Control(1, "Explode", msgspec.Raw(msgspec.msgpack.encode({}))))


@given(st.binary(max_size=64))
def test_garbage_is_refused_and_never_crashes(data):
    known = (codec.Start, codec.Claim, codec.Submit, codec.Abort, codec.Control, codec.Shutdown, codec.Gone)
    with contextlib.suppress(codec.MessageError):
        assert isinstance(codec.decode_for_engine(data), known)
    assert codec.handshake_version(data) is None or isinstance(codec.handshake_version(data), int)


def test_the_handshake_of_another_version_can_be_read_whatever_follows():
    foreign = msgspec.msgpack.encode(["hello", 99, {"future": True}, 1, 2, 3])
    assert codec.handshake_version(foreign) == 99
    assert codec.handshake_version(codec.encode(codec.Start(1, b""))) == 1
    assert codec.handshake_version(codec.encode(codec.Shutdown())) is None
    assert codec.handshake_version(msgspec.msgpack.encode(["hello", "1"])) is None
