"""LLM over the mock engine: shapes of answers, streams, threads, and every way to leave early."""

from __future__ import annotations

import threading
import time

import pytest

from penstock import LLM, SamplingParams
from penstock.config.flags import engine_config_from
from penstock.engine import build
from penstock.engine import llm as llm_module
from penstock.engine.engine import log_decisions
from penstock.engine.inproc import InProcessClient
from penstock.engine.mock_engine import build_mock_engine
from penstock.engine.mock_text import mock_assets
from penstock.errors import ConfigError, EngineDeadError, InvalidRequestError, RequestFailedError
from penstock.mock.faults import MockFaults
from penstock.types.control import ResetPrefixCache
from penstock.types.decision import Decision, Rejection
from penstock.types.output import FinishReason

GREEDY = SamplingParams(temperature=0, max_tokens=12)
MANY = 4000  # tokens that nobody waits for: they would take 8 s


@pytest.fixture(scope="module")
def llm():
    with LLM(mock=True, max_model_len=4096, check_integrity=True) as made:
        yield made


def wait_until_idle(llm):
    while llm.stats().num_running or llm.stats().num_waiting:
        time.sleep(0.001)


def watch_terminals(monkeypatch, llm):
    """The terminal of each request from now on, by its id: also of those that nobody listens to any more."""
    terminals = {}
    submit = llm._client.submit

    def watched(request, sink):
        def told(updates, terminal):
            if terminal is not None:
                terminals[request.request_id] = terminal
            sink(updates, terminal)

        submit(request, told)

    monkeypatch.setattr(llm._client, "submit", watched)
    return terminals


def wait_for_terminals(terminals, number):
    """Requests that are not aborted end by themselves, so that this does too."""
    while len(terminals) < number:
        time.sleep(0.001)


def assert_aborted(terminal):
    assert terminal.reason is FinishReason.ABORT
    assert terminal.num_output_tokens < MANY


def test_one_prompt_is_one_answer(llm):
    (answer,) = llm.generate("Hello", GREEDY)
    (output,) = answer.outputs
    assert answer.prompt == "Hello"
    assert answer.prompt_token_ids == tuple(b"Hello")
    assert len(output.token_ids) == 12
    assert output.finish_reason == "length"
    assert output.text == answer.text == bytes(output.token_ids).decode()
    assert output.logprobs is None
    assert answer.prompt_logprobs is None


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("ab", [("ab", (97, 98))]),
        (["ab", "c"], [("ab", (97, 98)), ("c", (99,))]),
        ([97, 98], [(None, (97, 98))]),
        ((97, 98), [(None, (97, 98))]),
        ([[97], (98,), "c"], [(None, (97,)), (None, (98,)), ("c", (99,))]),
        ([], []),
    ],
)
def test_prompts_are_texts_or_token_ids_one_or_many(llm, prompts, expected):
    answers = llm.generate(prompts, GREEDY)
    assert [(answer.prompt, answer.prompt_token_ids) for answer in answers] == expected


def test_answers_keep_the_order_of_prompts_and_choices(llm):
    params = [SamplingParams(max_tokens=1 + (7 * number) % 11, n=1 + number % 3) for number in range(40)]
    answers = llm.generate([str(number) for number in range(40)], params)
    for number, answer in enumerate(answers):
        assert answer.prompt == str(number)
        assert [output.index for output in answer.outputs] == list(range(1 + number % 3))
        assert all(len(output.token_ids) == 1 + (7 * number) % 11 for output in answer.outputs)


def test_logprobs_describe_every_token(llm):
    params = SamplingParams(max_tokens=5, logprobs=3, prompt_logprobs=0)
    (answer,) = llm.generate("prompt", params)
    (output,) = answer.outputs
    assert [entry.chosen.token_id for entry in output.logprobs] == list(output.token_ids)
    assert all(len(entry.top) >= 2 for entry in output.logprobs)
    assert output.cumulative_logprob == sum(entry.chosen.logprob for entry in output.logprobs)
    assert [entry.chosen.token_id for entry in answer.prompt_logprobs] == list(b"rompt")


def test_a_chat_is_rendered_by_the_models_template(llm):
    messages = [{"role": "user", "content": "hi"}]
    (answer,) = llm.chat(messages, GREEDY)
    assert answer.prompt == llm.render_chat(messages) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    several = llm.chat([messages, [{"role": "user", "content": "ho"}]], GREEDY)
    assert ["ho" in answer.prompt for answer in several] == [False, True]


def test_a_stream_is_the_answer_in_pieces(llm):
    deltas = list(llm.stream("Hello", GREEDY))
    assert len(deltas) > 2
    assert sum(len(delta.token_ids) for delta in deltas) == 12
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    chat = list(llm.stream_chat([{"role": "user", "content": "hi"}], GREEDY))
    assert chat[-1].finish_reason == "length"


def test_a_stop_string_ends_the_answer_and_frees_the_request(llm, monkeypatch):
    terminals = watch_terminals(monkeypatch, llm)
    (answer,) = llm.generate("Hello", SamplingParams(max_tokens=MANY, stop=(" ",)))
    assert answer.outputs[0].finish_reason == "stop"
    assert answer.outputs[0].stop_reason == " "
    assert " " not in answer.text
    (terminal,) = terminals.values()
    assert_aborted(terminal)
    wait_until_idle(llm)


def test_a_reset_forgets_the_prefixes(llm):
    prompt = "a prompt of several blocks, which is long enough to be found again"
    cached = [llm.generate(prompt, GREEDY)[0].num_cached_tokens for _ in range(2)]
    assert cached[1] > cached[0]
    assert llm.control(ResetPrefixCache()).ok
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0


def test_leaving_a_stream_early_aborts_its_request(llm, monkeypatch):
    terminals = watch_terminals(monkeypatch, llm)
    stream = llm.stream("Hello", SamplingParams(max_tokens=MANY))
    next(stream)
    stream.close()
    wait_for_terminals(terminals, 1)
    (terminal,) = terminals.values()
    assert_aborted(terminal)
    wait_until_idle(llm)


def test_several_threads_share_the_engine(llm):
    answers = {}

    def work(number):
        answers[number] = llm.generate([f"{number}-{i}" for i in range(5)], GREEDY)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert [answer.prompt for answer in answers[number]] == [f"{number}-{i}" for i in range(5)]
        assert all(len(answer.outputs[0].token_ids) == 12 for answer in answers[number])


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (lambda llm: llm.generate("x" * 5000, GREEDY), "prompt"),
        (lambda llm: llm.generate(["a", "b"], [GREEDY]), "sampling_params"),
        (lambda llm: llm.generate([[1, 9999]], GREEDY), "prompt"),
        (lambda llm: llm.generate("", GREEDY), "prompt"),
        (lambda llm: llm.stream("a", SamplingParams(n=2)), "n"),
        (lambda llm: llm.chat([{"role": "user", "content": 5}], GREEDY), "messages"),
    ],
)
def test_wrong_requests_are_refused_before_anything_runs(llm, call, param):
    before = llm.stats().num_steps
    with pytest.raises(InvalidRequestError) as caught:
        call(llm)
    assert (caught.value.param or "").startswith(param)
    assert llm.stats().num_steps == before


def test_wrong_options_are_refused_with_a_sentence():
    with pytest.raises(ConfigError, match="max_model_length"):
        LLM(mock=True, max_model_length=5)


def test_closing_twice_is_harmless_and_afterwards_the_engine_is_dead():
    llm = LLM(mock=True)
    llm.close()
    llm.close()
    with pytest.raises(EngineDeadError, match="was stopped"):
        llm.generate("a", GREEDY)
    with pytest.raises(EngineDeadError, match="was stopped"):
        llm.control(ResetPrefixCache())


def test_decisions_are_logged_once_when_the_engine_starts(caplog):
    with caplog.at_level("DEBUG", logger="penstock"), LLM(mock=True, max_model_len=64) as llm:
        decisions = llm.info.decisions
        llm.generate("a", GREEDY)
    assert decisions
    told = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    for decision in decisions:
        assert told.count(f"{decision.subject}: {decision.chosen} ({decision.why})") == 1
    details = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    for decision in decisions:
        for rejection in decision.rejected:
            assert f"{decision.subject}: not {rejection.name}: {'; '.join(rejection.reasons)}" in details


def test_refused_candidates_are_logged_for_those_who_ask(caplog):
    decision = Decision(
        subject="device", chosen="cpu", why="the only one", rejected=(Rejection("gpu", ("is hot", "is lost")),)
    )
    with caplog.at_level("INFO", logger="penstock"):
        log_decisions([decision])
    assert [record.getMessage() for record in caplog.records] == ["device: cpu (the only one)"]
    with caplog.at_level("DEBUG", logger="penstock"):
        log_decisions([decision])
    assert caplog.records[-1].getMessage() == "device: not gpu: is hot; is lost"


def test_stats_add_up_the_executors_time(llm):
    before = llm.stats()
    llm.generate("a", GREEDY)
    after = llm.stats()
    steps = after.num_steps - before.num_steps
    assert steps >= 12
    # The mock takes 2 ms a step; the last steps may not have been reported yet.
    assert 0.002 * 11 <= after.forward_s - before.forward_s < 0.002 * (steps + 1)


def faulty(monkeypatch, faults):
    """An LLM whose mock executor fails as told."""

    def build_for_llm(options, *, mock):
        config = engine_config_from(**options)
        client = InProcessClient(lambda channel: build_mock_engine(config, channel, faults=faults))
        return client, mock_assets()

    assert build.build_for_llm is llm_module.build_for_llm
    monkeypatch.setattr(llm_module, "build_for_llm", build_for_llm)
    return LLM()


def test_a_failed_request_raises_its_own_sentence_and_the_others_are_aborted(monkeypatch):
    with faulty(monkeypatch, MockFaults(failed_requests={2: "the logits are not finite"})) as llm:
        terminals = watch_terminals(monkeypatch, llm)
        with pytest.raises(RequestFailedError, match="not finite") as caught:
            llm.generate(["a", "b", "c"], SamplingParams(max_tokens=MANY))
        assert caught.value.kind == "internal"
        wait_for_terminals(terminals, 3)
        assert terminals[2].reason is FinishReason.ERROR
        assert_aborted(terminals[1])
        assert_aborted(terminals[3])
        wait_until_idle(llm)
        assert len(llm.generate("d", GREEDY)[0].outputs[0].token_ids) == 12


def test_an_executor_that_dies_ends_what_runs_and_what_comes(monkeypatch):
    with faulty(monkeypatch, MockFaults(die_at_step=5)) as llm:
        with pytest.raises(EngineDeadError, match="died at step 5") as caught:
            llm.generate(["a", "b"], SamplingParams(max_tokens=MANY))
        assert "died at step 5" in str(caught.value.__cause__)
        assert caught.value.__cause__.__traceback__ is not None
        with pytest.raises(EngineDeadError, match="died at step 5"):
            list(llm.stream("c", GREEDY))


def test_progress_is_drawn_on_stderr_only(llm, capsys):
    llm.generate(["a", "b"], GREEDY, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "prompts" in captured.err
