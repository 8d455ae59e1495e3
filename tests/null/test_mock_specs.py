"""What a mock engine is told as text, and the ceiling engine that answers in the core's place."""

from __future__ import annotations

import json
import threading
from array import array

import pytest

from penstock.config.flags import engine_config_from, mock_config_from
from penstock.config.sections import MockConfig
from penstock.engine.mock_engine import build_ceiling_engine, build_mock_engine, mock_info
from penstock.engine.mock_text import mock_assets, mock_order
from penstock.errors import ConfigError
from penstock.frontend.dialects.contract import Reading
from penstock.frontend.dialects.events import AnswerFold
from penstock.frontend.dialects.machine import Machine
from penstock.frontend.dialects.table import DIALECTS
from penstock.mock.ceiling import CeilingEngine
from penstock.mock.garbage import GARBAGE
from penstock.mock.performance import FixedDelay, StepShape
from penstock.mock.rig import RecordingChannel, make_request
from penstock.mock.specs import MockOrder, parse_faults, parse_performance
from penstock.types.output import FailureKind, FinishReason
from penstock.types.structured import StructuredSpec

SHAPE = StepShape(num_rows=4, num_tokens=100, num_sampled=4, context_tokens=1000)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2ms", 0.002),
        ("0s", 0.0),
        (".5 ms", 0.0005),
        ("1ms+10us*tokens", 0.002),
        ("1ms + 5us*rows + 2ns*context + 1ms", 0.002022),
    ],
)
def test_step_times_as_text(text, seconds):
    assert parse_performance(text)(SHAPE) == pytest.approx(seconds)


def test_step_times_from_a_table(tmp_path):
    path = tmp_path / "steps.json"
    path.write_text(json.dumps([[200, 0.004], [50, 0.001]]))
    assert parse_performance(f"@{path}")(SHAPE) == pytest.approx(0.002)


@pytest.mark.parametrize("text", ["", "2", "ms", "2ms+", "-1ms", "1ms*frogs", "1ms*tokens*rows", "2 minutes", "1e3ms"])
def test_other_step_times_are_refused(text):
    with pytest.raises(ConfigError, match="--mock-time"):
        parse_performance(text)


@pytest.mark.parametrize("content", ["", "{}", "[]", "[[1]]", "[[0, 1]]", "[[1, -1]]", '[["a", 1]]', "3"])
def test_broken_tables_are_refused(tmp_path, content):
    path = tmp_path / "steps.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"steps\.json"):
        parse_performance(f"@{path}")


def test_a_missing_table_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_performance(f"@{tmp_path}/none.json")


def test_faults_as_text():
    faults = parse_faults(["fail-step=3", "fail-step=5", "stall=7:0.25", "die=9", "garbage=hermes"])
    assert faults.failed_steps == {3, 5}
    assert faults.stalls == {7: 0.25}
    assert faults.die_at_step == 9


@pytest.mark.parametrize("text", ["", "die", "die=x", "die=-1", "stall=3", "stall=3:x", "fail-step=", "explode=1"])
def test_other_faults_are_refused_with_the_known_ones(text):
    with pytest.raises(ConfigError, match="fail-step=N, stall=N:SECONDS, die=N, garbage=DIALECT"):
        parse_faults([text])


def test_garbage_needs_a_known_dialect():
    with pytest.raises(ConfigError, match="hermes"):
        parse_faults(["garbage=klingon"])


def test_there_is_garbage_for_every_dialect():
    assert GARBAGE.keys() == {dialect.name for dialect in DIALECTS}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_garbage_is_broken_in_the_dialect_that_it_names(dialect):
    """Frontend and mock do not know each other: names and marks agree because of this. A tool that nobody offered is
    whole, and the only broken thing that would be a call if somebody had; as nobody has, it is content."""
    texts = GARBAGE[dialect.name]
    answers = [read_answer(dialect, "get_weather", text) for text in texts]
    assert not any(call.complete for answer in answers for call in answer.calls)
    assert all(answer.content or answer.reasoning or answer.calls for answer in answers)
    if dialect.reads_calls:
        assert (answers[2].content, answers[2].calls) == (texts[2], [])
        (call,) = read_answer(dialect, "no_such_tool", texts[2]).calls
        assert call.complete


def read_answer(dialect, tool, text):
    machine, fold = Machine(dialect, Reading(tools={tool: {}}, in_reasoning=False)), AnswerFold()
    fold.add(machine.push(text))
    fold.add(machine.finish())
    return fold


@pytest.mark.parametrize("dialect", GARBAGE)
def test_garbage_is_said_to_the_letter(dialect):
    """Requests in turn get one broken text each, and then the end."""
    channel = RecordingChannel()
    assets = mock_assets()
    order = mock_order(MockConfig(mock_fault=(f"garbage={dialect}",)), assets)
    config = engine_config_from(max_model_len=4096, max_num_seqs=8)
    engine = build_mock_engine(config, channel, performance=FixedDelay(), order=order)
    thread = threading.Thread(target=engine.run)
    thread.start()
    eos = assets.tokenizer.eos_token_id
    ids = range(len(GARBAGE[dialect]))
    for request_id in ids:
        engine.submit(make_request(request_id, [1, 2, 3], max_tokens=2000, stop_token_ids=(eos,)))
    end = threading.Event()
    while len(channel.terminals) < len(ids):
        assert not end.wait(0.005)
    engine.stop()
    thread.join()
    said = {assets.tokenizer.decode(channel.tokens(request_id)) for request_id in ids}
    assert said == set(GARBAGE[dialect])


def test_a_mock_engine_plans_a_step_ahead():
    """Also where the probed platform is a CPU, on which a real engine plans none ahead."""
    assert mock_info(engine_config_from(), MockOrder()).settings["async_depth"] == "2"


def test_the_ceiling_mode_has_no_faults():
    with pytest.raises(ConfigError, match="Leave out"):
        MockOrder(config=mock_config_from(mock_ceiling=True, mock_fault=["die=1"])).check()


# -- the ceiling engine -------------------------------------------------------------------------------------------


class Rig:
    """A ceiling engine on a thread; what it emits is kept, and ``emit`` can be made to wait."""

    def __init__(self, **fields):
        self.tokens: dict[int, list[int]] = {}
        self.terminals: dict[int, list] = {}
        self.num_batches = 0
        self.gate = threading.Event()
        self.gate.set()
        info = mock_info(engine_config_from(max_model_len=512), MockOrder(vocab_size=1000))
        self.engine = CeilingEngine(info, self._emit, vocab_size=1000, **fields)
        self._thread = threading.Thread(target=self.engine.run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.gate.set()
        self.engine.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _emit(self, batch):
        self.gate.wait()
        self.num_batches += 1
        ids, tokens = array("q"), array("i")
        ids.frombytes(batch.columns.request_ids)
        tokens.frombytes(batch.columns.token_ids)
        assert len(set(ids)) == len(ids) == len(tokens)
        for request_id, token_id in zip(ids, tokens, strict=True):
            assert request_id not in self.terminals, "a token after the end"
            self.tokens.setdefault(request_id, []).append(token_id)
        for end in batch.terminals:
            self.terminals.setdefault(end.request_id, []).append(end)

    def wait_for(self, number):
        pause = threading.Event()
        for _ in range(4000):
            if len(self.terminals) >= number:
                return
            pause.wait(0.005)
        raise AssertionError(f"{len(self.terminals)} of {number} requests ended")


def test_every_request_gets_its_tokens_and_one_end():
    with Rig(seed=3) as rig:
        for request_id in range(1, 101):
            rig.engine.submit(make_request(request_id, [1] * 5, max_tokens=1 + request_id % 7))
        rig.wait_for(100)
    for request_id in range(1, 101):
        (end,) = rig.terminals[request_id]
        assert end.reason is FinishReason.LENGTH
        assert len(rig.tokens[request_id]) == end.num_output_tokens == 1 + request_id % 7
        assert all(0 <= token < 1000 for token in rig.tokens[request_id])


def test_no_tokens_are_an_end_at_once_and_no_limit_is_the_models():
    with Rig() as rig:
        rig.engine.submit(make_request(1, [1] * 5, max_tokens=0))
        rig.engine.submit(make_request(2, [1] * 5, max_tokens=None))
        rig.wait_for(2)
    assert 1 not in rig.tokens
    assert len(rig.tokens[2]) == 512 - 5


def test_aborted_requests_end_with_what_they_had():
    with Rig(performance=FixedDelay(0.001)) as rig:
        rig.engine.submit(make_request(1, [1], max_tokens=500))
        while 1 not in rig.tokens:
            threading.Event().wait(0.001)
        rig.engine.abort([1, 99])
        rig.wait_for(1)
    (end,) = rig.terminals[1]
    assert end.reason is FinishReason.ABORT
    assert len(rig.tokens[1]) == end.num_output_tokens


def test_the_ceiling_mode_takes_no_named_backend_of_constrained_output():
    config = engine_config_from(structured_backend="llguidance")
    with pytest.raises(ConfigError, match="Leave out --structured-backend"):
        build_ceiling_engine(config, MockOrder(config=mock_config_from(mock_ceiling=True)), lambda _: None)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"logprobs": 1}, FailureKind.CONTRADICTION),
        ({"prompt_logprobs": 0}, FailureKind.CONTRADICTION),
        ({"allowed_token_ids": (1,)}, FailureKind.CONTRADICTION),
        ({"structured": StructuredSpec.regex("a")}, FailureKind.CONSTRAINT),
    ],
)
def test_what_it_cannot_answer_truthfully_it_refuses(fields, kind):
    with Rig() as rig:
        rig.engine.submit(make_request(1, [1], max_tokens=5, **fields))
        rig.wait_for(1)
    (end,) = rig.terminals[1]
    assert end.failure is kind
    assert 1 not in rig.tokens


def test_a_reader_that_is_behind_stops_it():
    with Rig() as rig:
        rig.gate.clear()
        rig.engine.submit(make_request(1, [1], max_tokens=100))
        threading.Event().wait(0.05)
        assert rig.num_batches == 0
        rig.gate.set()
        rig.wait_for(1)
    assert rig.num_batches == 100
