"""The command line on the mock engine: help that teaches, answers alone on stdout, errors as one sentence."""

from __future__ import annotations

import io
import json
import sys

import pytest

import penstock
from penstock import LLM, SamplingParams
from penstock.cli.main import main
from penstock.config import flags
from penstock.engine import mock_engine
from penstock.errors import ConfigError

VERBS = ("serve", "run", "chat", "pull", "bench", "explain", "check")


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command line in this process; answers exit status, stdout and stderr."""
    for name in ("PENSTOCK_DEBUG", "PENSTOCK_LOG_LEVEL"):
        monkeypatch.setenv(name, "")  # restored afterwards, whatever the call sets
    monkeypatch.setattr(mock_engine, "_STEP_S", 0.0)

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


def test_version(call):
    assert call("--version") == (0, f"penstock {penstock.__version__}\n", "")


def test_help_names_every_verb(call):
    status, out, _ = call("--help")
    assert status == 0
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert "penstock run smollm2" in out


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "bench"])
def test_help_of_every_verb_has_examples(call, verb):
    status, out, _ = call(verb, "--help")
    assert status == 0
    assert out.count(f"  penstock {verb}") >= 2


@pytest.mark.parametrize("verb", ["serve", "run", "chat", "explain"])
def test_engine_flags_are_shared(call, verb):
    _, out, _ = call(verb, "--help")
    assert all(flag.option in out for flag in flags.engine_flags() if flag.name != "model")
    assert ("--metrics-prefix" in out) == (verb == "serve")


def test_run_prints_the_completion_alone(call):
    with LLM("mock", mock=True, seed=3) as llm:
        expected = llm.generate("hello", SamplingParams(max_tokens=12, seed=3))[0].text
    status, out, err = call("run", "smollm2", "hello", "--raw", "--mock", "--max-tokens", "12", "--seed", "3")
    assert status == 0
    assert out == expected + "\n" * (not expected.endswith("\n"))
    assert err.count("\n") <= 1  # at most the remark that it was cut


def test_run_reads_standard_input(call):
    arguments = ["run", "smollm2", "--raw", "--mock", "--max-tokens", "5", "--seed", "1", "--json"]
    from_stdin = call(*arguments, "-", stdin="some text")
    assert json.loads(from_stdin[1])["prompt"] == "some text"
    assert from_stdin[1] == call(*arguments, "some text")[1]


@pytest.mark.parametrize("context", ["64", "1024"])
def test_a_small_context_shortens_the_default_answer(call, context):
    arguments = ("--mock", "--max-model-len", context, "--seed", "1")
    status, out, err = call("run", "smollm2", "hello", "--raw", "--json", *arguments)
    assert status == 0, err
    assert json.loads(out)["usage"]["total_tokens"] <= int(context)
    status, out, err = call("chat", "smollm2", *arguments, stdin="hi\n")
    assert (status, err) == (0, "")
    assert out.strip()


def test_an_answer_that_was_asked_for_and_has_no_room_names_the_option(call):
    arguments = ("--mock", "--max-model-len", "64", "--max-tokens", "60")
    status, out, err = call("run", "smollm2", "hello", "--raw", *arguments)
    assert (status, out) == (2, "")
    assert "--max-tokens asks for 60" in err
    assert "at most 59 tokens" in err
    status, out, err = call("chat", "smollm2", *arguments, stdin="hi\n")
    assert status == 0
    assert "--max-tokens asks for 60" in err


def test_run_says_where_an_answer_was_cut(call):
    _, _, err = call("run", "smollm2", "hello", "--raw", "--mock", "--max-model-len", "64", "--max-tokens", "3")
    assert "cut after 3 tokens" in err


def test_run_json(call):
    status, out, _ = call("run", "smollm2", "hello", "--raw", "--mock", "--max-tokens", "5", "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer["usage"]["completion_tokens"] == len(answer["token_ids"])
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + len(answer["token_ids"])
    assert answer["finish_reason"] in ("stop", "length")


def test_only_a_seed_repeats_an_answer(call):
    """Without one, every start answers anew: 24 random letters are never the same twice."""

    def text(*more):
        return call("run", "smollm2", "hello", "--raw", "--mock", "--max-tokens", "24", *more)[1]

    assert text("--seed", "5") == text("--seed", "5") != text("--seed", "6")
    assert text() != text()


def test_run_uses_the_chat_template_unless_raw(call):
    arguments = ["run", "smollm2", "hello", "--mock", "--max-tokens", "1", "--seed", "1", "--json"]
    chat = json.loads(call(*arguments)[1])
    assert chat == json.loads(call(*arguments, "--chat")[1])
    assert "hello" in chat["prompt"]
    assert chat["prompt"] != json.loads(call(*arguments, "--raw")[1])["prompt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "smollm2", "x", "--raw", "--chat"], "--raw and --chat exclude each other"),
        (["run", "smollm2", "x", "--max-num-seqs", "none"], "--max-num-seqs is 'none', but it must be a whole number"),
        (["run", "smollm2", "x", "--mock", "--temperature", "-1"], "--temperature must be at least 0"),
        (["run", "no-such-model", "x"], "no-such-model"),
        (["pull", "./no-such-directory"], "does not exist"),
        (["serve", "smollm2", "--port", "99999"], "--port is 99999, but it must be at most 65535"),
        (["serve", "smollm2", "--kv-cache-memory", "much"], "--kv-cache-memory is 'much'"),
        (["serve", "--mock", "--frontends", "0"], "--frontends"),
        (["serve", "--mock", "--frontends", "65"], "--frontends"),
        (["serve", "--mock", "--frontends", "x"], "--frontends"),
        (["--log-level", "loud", "pull", "smollm2"], "must be one of debug, info, warning, error"),
    ],
)
def test_what_the_user_can_fix_is_a_sentence(call, arguments, sentence):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.startswith("penstock: ")
    assert "Traceback" not in err


def test_usage_errors_exit_alike(call):
    for arguments in (["run"], ["nonsense"], ["run", "smollm2", "x", "--nonsense"]):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "")
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rnu", "smollm2"], "penstock: Run penstock --help: there is no command rnu; run was meant?"),
        (["bench", "srve"], "penstock: Run penstock bench --help: there is no command srve; serve was meant?"),
        (["--vresion"], "there is no option --vresion"),
        (["run", "a", "b", "--max-tokns=3"], "there is no option --max-tokns; --max-tokens was meant?"),
        (["run", "a", "b", "--max-token", "3"], "there is no option --max-token; --max-tokens was meant?"),
        (["run", "a"], "PROMPT"),
        (["run", "a", "b", "c"], "'c' is one argument too many"),
        (["run", "a", "b", "--max-tokens", "x"], "--max-tokens: invalid int value: 'x'"),
        (["run", "a", "b", "--max-tokens", "0"], "--max-tokens is 0, but it must be at least 1"),
        (["bench", "serve", "--request-rate", "2,x"], "--request-rate is '2,x', but it must be positive numbers"),
        (["bench", "serve", "--request-rate", "2", "--concurrency", "1,2"], "Give one number to --concurrency"),
        (["bench", "serve", "--request-rate", "0"], "--request-rate is '0', but it must be positive numbers"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(call, arguments, sentence):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err


def test_options_stand_where_people_put_them(call):
    """Before, between and behind the arguments, with = and without; a prompt may be a dash or look like a sentence."""
    expected = call("run", "smollm2", "hello", "--raw", "--mock", "--max-tokens", "5", "--seed", "1")
    assert expected[0] == 0
    assert call("run", "--raw", "smollm2", "--mock", "hello", "--max-tokens=5", "--seed=1") == expected
    first = ("--seed", "1", "--mock", "--raw", "--max-tokens", "5")
    assert call("--log-level=error", "run", *first, "smollm2", "hello") == expected
    assert call("--log-level", "error", "--version") == (0, f"penstock {penstock.__version__}\n", "")


def test_malformed_environment(call, monkeypatch):
    monkeypatch.setenv("PENSTOCK_DEBUG", "perhaps")
    status, _, err = call("pull", "smollm2")
    assert status == 2
    assert "PENSTOCK_DEBUG is 'perhaps'" in err


def test_debug_shows_where_it_came_from(monkeypatch):
    monkeypatch.setenv("PENSTOCK_DEBUG", "")
    with pytest.raises(ConfigError, match="exclude each other"):
        main(["--debug", "run", "smollm2", "x", "--raw", "--chat"])


def test_chat_remembers_until_reset(call, monkeypatch):
    seen = []
    answer = LLM.stream_chat

    def record(self, messages, *rest, **options):
        seen.append([(message["role"], message["content"]) for message in messages])
        return answer(self, messages, *rest, **options)

    monkeypatch.setattr(LLM, "stream_chat", record)
    lines = "one\n\n/nonsense\n/help\ntwo\n/reset\nthree\n/system be brief\nfour\n/exit\nnever\n"
    status, out, err = call(
        "chat", "m", "--mock", "--max-tokens", "4", "--system", "be kind", "--seed", "1", stdin=lines
    )
    assert status == 0
    assert [messages[-1] for messages in seen] == [("user", word) for word in ("one", "two", "three", "four")]
    assert [role for role, _ in seen[1]] == ["system", "user", "assistant", "user"]
    assert seen[1][2][1].strip() in out
    assert seen[2] == [("system", "be kind"), ("user", "three")]
    assert seen[3] == [("system", "be brief"), ("user", "four")]
    assert "There is no command /nonsense" in err
    assert "/reset" in err


def test_ctrl_c_ends_the_answer_and_then_the_chat(call, monkeypatch):
    answers = []

    def interrupted(self, messages, sampling):
        from penstock.frontend.text.stream import TextDelta

        answers.append([message["content"] for message in messages])
        yield TextDelta(text="half an ")
        raise KeyboardInterrupt

    lines = iter(["one", "two"])

    def read(prompt):
        for line in lines:
            return line
        raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "stream_chat", interrupted)
    monkeypatch.setattr("builtins.input", read)
    status, out, err = call("chat", "m", "--mock")
    assert status == 0
    assert answers == [["one"], ["one", "half an ", "two"]]
    assert out.count("half an ") == 2
    assert "Traceback" not in err


def test_chat_survives_a_conversation_that_is_too_long(call):
    long = "word " * 400
    status, out, err = call(
        "chat", "m", "--mock", "--max-model-len", "512", "--max-tokens", "4", stdin=f"hi\n{long}\nhi\n"
    )
    assert status == 0
    assert "/reset forgets the conversation" in err
    assert out.count("\n") >= 2


def test_an_interrupted_run_exits_as_shells_expect(call, monkeypatch):
    def interrupted(self, prompt, sampling):
        raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "stream", interrupted)
    status, _, err = call("run", "m", "hello", "--raw", "--mock")
    assert status == 130
    assert "Traceback" not in err
