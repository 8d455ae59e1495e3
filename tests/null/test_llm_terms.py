"""What LLM takes besides sampling: time limits, priorities, cache salts, and a default length."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from penstock import LLM, SamplingParams
from penstock.errors import InvalidRequestError, RequestFailedError
from penstock.observability import log as log_module

LONG = SamplingParams(max_tokens=4000, ignore_eos=True)
SHORT = SamplingParams(max_tokens=2)
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def llm():
    with LLM(mock=True, max_model_len=8192, max_num_seqs=1, scheduling_policy="priority") as made:
        yield made


@pytest.mark.parametrize(
    "call",
    [
        lambda llm, **terms: llm.generate("a", LONG, **terms),
        lambda llm, **terms: llm.chat(MESSAGES, LONG, **terms),
        lambda llm, **terms: list(llm.stream("a", LONG, **terms)),
        lambda llm, **terms: list(llm.stream_chat(MESSAGES, LONG, **terms)),
    ],
)
def test_every_way_to_ask_takes_a_time_limit(llm, call):
    with pytest.raises(RequestFailedError) as caught:
        call(llm, timeout=0.05)
    assert caught.value.kind == "deadline"


def test_a_long_time_limit_changes_nothing(llm):
    for timeout in (60, 1e300, float("inf"), 10**400):
        assert len(llm.generate("a", SHORT, timeout=timeout)[0].outputs[0].token_ids) == 2


def test_lower_priorities_run_first(llm):
    """One seat, taken by a stream: of two that wait, the later but more urgent one is the first to be answered."""
    running = llm.stream("r", SamplingParams(max_tokens=100, ignore_eos=True))
    next(running)
    order, threads = [], []

    def ask(name, priority):
        llm.generate(name, SHORT, priority=priority)
        order.append(name)

    for name, priority in (("casual", 5), ("urgent", -5)):
        threads.append(threading.Thread(target=ask, args=(name, priority)))
        threads[-1].start()
        while llm.stats().num_waiting < len(threads):
            time.sleep(0.001)
    list(running)
    for thread in threads:
        thread.join()
    assert order == ["urgent", "casual"]


def test_prompts_share_cached_blocks_only_under_the_same_salt(llm):
    prompt = "a prompt of several blocks, which is long enough to be found again"

    def cached(salt):
        return llm.generate(prompt, SHORT, cache_salt=salt)[0].num_cached_tokens

    assert cached("one") == 0
    assert cached("one") > 0
    assert cached("two") == 0
    assert llm.chat([{"role": "user", "content": prompt}], SHORT, cache_salt="three")[0].num_cached_tokens == 0


@pytest.mark.parametrize(
    ("terms", "param"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "1"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"priority": 1.5}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"cache_salt": None}, "cache_salt"),
    ],
)
def test_wrong_terms_are_refused_before_anything_runs(llm, terms, param):
    before = llm.stats().num_steps
    with pytest.raises(InvalidRequestError) as caught:
        llm.generate("a", SHORT, **terms)
    assert caught.value.param == param
    assert llm.stats().num_steps == before


def test_a_priority_that_nothing_obeys_is_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(log_module, "_seen", set())
    monkeypatch.setattr(logging.getLogger("penstock"), "propagate", True)
    with LLM(mock=True, max_model_len=64) as fcfs, caplog.at_level(logging.WARNING, logger="penstock"):
        fcfs.generate("a", SHORT)
        assert "priority is ignored" not in caplog.text
        fcfs.generate("a", SHORT, priority=1)
        assert "priority is ignored" in caplog.text


def test_the_default_length_gives_way_to_the_context_and_to_what_is_asked():
    free = SamplingParams(ignore_eos=True)
    with LLM(mock=True, max_model_len=64, default_max_tokens=20) as llm:

        def length(prompt, params=free):
            return len(llm.generate(prompt, params)[0].outputs[0].token_ids)

        assert length("a") == 20
        assert length("a" * 60) == 4
        assert length("a", SamplingParams(max_tokens=30, ignore_eos=True)) == 30
        with pytest.raises(InvalidRequestError, match="at most 4 tokens"):
            length("a" * 60, SamplingParams(max_tokens=30))
