"""Hostile constraints: what takes too long or too much, or brings a compiler down, is given up."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from functools import partial

import pytest
from structured_fixtures import byte_vocabulary

from penstock import LLM, SamplingParams, StructuredSpec
from penstock.errors import InvalidRequestError
from penstock.structured import grammar_cache
from penstock.structured import trial as trial_module
from penstock.structured.backends.llguidance import Llguidance
from penstock.structured.contract import ConstraintError
from penstock.structured.grammar_cache import CompileLimits, GrammarCache
from penstock.structured.trial import Trial
from penstock.structured.trial_process import write_frame
from penstock.types.structured import MAX_CHOICES

# A few characters that ask for gigabytes and for minutes.
BOMB = StructuredSpec.json_schema({"type": "integer", "multipleOf": 100_000_007})


@pytest.fixture
def trial():
    made = []

    def make(time_limit_s=20.0, memory_bytes=1 << 30):
        made.append(Trial("llguidance", byte_vocabulary(), time_limit_s=time_limit_s, memory_bytes=memory_bytes))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_what_takes_too_long_is_given_up_and_the_next_is_served(trial):
    one = trial(time_limit_s=0.5)
    for _ in range(2):
        with pytest.raises(ConstraintError, match=r"took longer than 0\.5 s"):
            one.check(BOMB)
        one.check(StructuredSpec.regex("a+"))


def test_what_takes_too_much_memory_is_given_up(trial):
    one = trial(time_limit_s=300.0, memory_bytes=100 << 20)
    with pytest.raises(ConstraintError, match="too much memory"):
        one.check(BOMB)
    one.check(StructuredSpec.regex("a+"))


def test_a_compiler_that_is_brought_down_is_started_again(trial):
    one = trial()
    one.check(StructuredSpec.regex("a+"))
    os.kill(one._process.pid, signal.SIGKILL)
    one._process.wait()
    one.check(StructuredSpec.regex("b+"))
    with pytest.raises(ConstraintError, match="regular expression"):
        one.check(StructuredSpec.regex("["))


def test_what_ends_a_used_process_has_another_trial_in_a_new_one(trial, monkeypatch):
    one = trial()
    one.check(StructuredSpec.regex("a+"))
    used = one._process

    def breaks_once(stream, data):
        if one._process is used:
            used.kill()
            used.wait()
        write_frame(stream, data)

    monkeypatch.setattr(trial_module, "write_frame", breaks_once)
    one.check(StructuredSpec.regex("b+"))
    assert one._process is not used


def test_a_trial_says_what_a_grammar_holds(trial):
    one = trial()
    small = one.check(StructuredSpec.regex("a+"))
    large = one.check(HOSTILE["huge enum"])
    if sys.platform == "linux":
        assert large > 10 * 2**20 > small
    with pytest.raises(ConstraintError, match="regular expression"):
        one.check(StructuredSpec.regex("["))


def test_refusals_by_time_are_not_kept():
    cache = GrammarCache(Llguidance(), byte_vocabulary, CompileLimits(time_s=0.3))
    first = cache.find(BOMB)
    wait_for(lambda: first.done)
    assert "took longer" in first.problem
    assert cache.find(BOMB) is not first
    refused = cache.find(StructuredSpec.regex("["))
    wait_for(lambda: refused.done)
    assert cache.find(StructuredSpec.regex("[")) is refused
    assert cache.stats().num_refused >= 2
    cache.close()


def test_grammars_are_forgotten_by_what_they_hold(monkeypatch):
    monkeypatch.setattr(GrammarCache, "_try", lambda _cache, _trial, _spec: 40)
    cache = GrammarCache(Llguidance(), byte_vocabulary, CompileLimits(max_cached_bytes=100, growth_bytes=0))
    found = []
    for letter in "abcd":
        found.append(cache.find(StructuredSpec.regex(letter)))
        wait_for(lambda: found[-1].done)
    assert cache.find(StructuredSpec.regex("d")) is found[3]
    assert cache.find(StructuredSpec.regex("c")) is found[2]
    assert cache.find(StructuredSpec.regex("a")) is not found[0]
    assert cache.stats().num_found == 2
    cache.close()


def test_what_following_adds_to_a_grammar_is_allowed_for():
    cache = GrammarCache(
        Llguidance(), byte_vocabulary, CompileLimits(trials=False, max_cached_bytes=100, growth_bytes=40)
    )
    found = []
    for letter in "abc[d":
        found.append(cache.find(StructuredSpec.regex(letter)))
        wait_for(lambda: found[-1].done)
    assert [pending.num_bytes for pending in found] == [40, 40, 40, 0, 40]
    assert cache.find(StructuredSpec.regex("a")) is not found[0]
    cache.close()


def test_a_grammar_that_is_spent_is_compiled_anew():
    cache = GrammarCache(Llguidance(), byte_vocabulary, CompileLimits(trials=False))
    spec = StructuredSpec.regex("a+")
    first = cache.find(spec)
    wait_for(lambda: first.done)
    assert cache.find(spec) is first
    first.grammar.is_spent = True
    second = cache.find(spec)
    wait_for(lambda: second.done)
    assert second is not first
    assert not second.grammar.is_spent
    cache.close()


def test_preparing_a_vocabulary_holds_nobody_up():
    """The thread of the core finds and drops while the first constraint waits for tables that take seconds."""
    entered, leave = threading.Event(), threading.Event()

    def vocabulary():
        entered.set()
        leave.wait()
        return byte_vocabulary()

    cache = GrammarCache(Llguidance(), vocabulary, CompileLimits(trials=False))
    pending = cache.find(StructuredSpec.regex("a+"))
    entered.wait()
    held = cache._lock.locked()
    leave.set()
    assert not held
    wait_for(lambda: pending.done)
    assert pending.problem == ""
    cache.close()


def test_its_process_ends_with_it(trial):
    one = trial()
    one.check(StructuredSpec.regex("a+"))
    pid = one._process.pid
    one.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_without_a_process_constraints_compile_all_the_same(monkeypatch, caplog):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    cache = GrammarCache(Llguidance(), byte_vocabulary)
    pending = cache.find(StructuredSpec.regex("a+"))
    wait_for(lambda: pending.done)
    assert pending.problem == ""
    assert "compiled without a trial" in caplog.text
    cache.close()


def test_the_oldest_grammars_are_forgotten():
    cache = GrammarCache(Llguidance(), byte_vocabulary, CompileLimits(trials=False, max_cached=3))
    found = []
    for letter in "abcde":
        found.append(cache.find(StructuredSpec.regex(letter)))
        wait_for(lambda: found[-1].done)
    assert cache.find(StructuredSpec.regex("e")) is found[4]
    assert cache.find(StructuredSpec.regex("a")) is not found[0]
    assert found[0].grammar is not None  # who holds it keeps it
    cache.close()


def nested(depth):
    return '{"type":"array","items":' * depth + '{"type":"string"}' + "}" * depth


HOSTILE = {
    "deep schema": StructuredSpec.json_schema(nested(5000)),
    "huge enum": StructuredSpec.json_schema({"enum": [f"value {i}" for i in range(30_000)]}),
    "huge object": StructuredSpec.json_schema({"type": "object", "properties": {f"p{i}": {} for i in range(20_000)}}),
    "large multiples": BOMB,
    "product of multiples": StructuredSpec.json_schema(
        {"allOf": [{"type": "integer", "multipleOf": m} for m in (99991, 99989, 99971)]}
    ),
    "endless reference": StructuredSpec.json_schema({"$ref": "#"}),
    "exponential alternatives": StructuredSpec.json_schema(
        {"allOf": [{"anyOf": [{"properties": {f"{x}{i}": {"type": "null"}}} for x in "ab"]} for i in range(20)]}
    ),
    "deep regex": StructuredSpec.regex("(" * 50_000 + "a" + ")" * 50_000),
    "nested repetition": StructuredSpec.regex("((a{1,1000}){1,1000}){1,1000}"),
    "exponential automaton": StructuredSpec.regex("(a|b)*a(a|b){25}"),
    "intersections": StructuredSpec.lark("start: A\nA: /.*a.{20}/ & ~/.*b.{20}/ & /.*c.{20}/"),
    "doubling rules": StructuredSpec.lark(
        "start: R0\n" + "\n".join(f"R{i}: R{i + 1} R{i + 1}" for i in range(50)) + '\nR50: "a"'
    ),
    "ambiguous rules": StructuredSpec.lark('start: a\na: a a | a a a | "a" | '),
    "deep grammar": StructuredSpec.lark("start: " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "deep gbnf": StructuredSpec.gbnf("root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "bomb within a grammar": StructuredSpec.lark('start: %json {"type": "integer", "multipleOf": 100000007}'),
    "many choices": StructuredSpec.choice(f"choice {i * 7919 % 100_003}" for i in range(MAX_CHOICES)),
}


def test_hostile_constraints_leave_others_their_engine(monkeypatch):
    """Either it is refused with a sentence, or it is followed; while it is compiled, others are answered."""
    monkeypatch.setattr(grammar_cache, "CompileLimits", partial(CompileLimits, time_s=1.0))
    refused = {}
    with LLM(mock=True, max_model_len=512) as llm:
        llm.generate("warm", SamplingParams(max_tokens=2, structured=StructuredSpec.regex("a+")))
        for name, spec in HOSTILE.items():
            try:
                answers = llm.generate(
                    ["hostile", "other"],
                    [SamplingParams(max_tokens=20, structured=spec), SamplingParams(max_tokens=20)],
                )
                assert answers[1].outputs[0].finish_reason == "length"
            except InvalidRequestError as error:
                refused[name] = str(error)
            answer = llm.generate("x", SamplingParams(max_tokens=9, structured=StructuredSpec.choice(["fine"])))
            assert answer[0].text == "fine", name
    assert {"deep schema", "large multiples", "bomb within a grammar", "deep gbnf"} <= set(refused)
    for name, sentence in refused.items():
        assert len(sentence) < 1000, name


def test_while_a_bomb_is_compiled_tokens_flow():
    """The bomb is held by its own limit alone: all of another request's tokens come before it is given up."""
    failed = []

    def ask():
        try:
            llm.generate("bomb", SamplingParams(max_tokens=5, structured=BOMB))
        except InvalidRequestError as error:
            failed.append(str(error))

    with LLM(mock=True, max_model_len=4096) as llm:
        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: llm._client._engine._core.stats().num_compiling)
        (answer,) = llm.generate("x", SamplingParams(max_tokens=200))
        assert len(answer.outputs[0].token_ids) == 200
        assert not failed
        thread.join()
    assert failed


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
