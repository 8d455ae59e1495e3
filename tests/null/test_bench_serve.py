"""The load generator against the mock server: it counts what the server counts, and failures are not results."""

from __future__ import annotations

import math
import os

import pytest
from http_fixtures import mock_server

from penstock.bench.added_latency import AddedLatency
from penstock.bench.http_load import Target, Trace, _read_answer
from penstock.bench.load_process import LoadOrder, share_out
from penstock.bench.serve import ServeWorkload, measure_serve
from penstock.bench.server_process import read_cost
from penstock.bench.workload import random_prompts, random_texts
from penstock.errors import ConfigError


@pytest.fixture(scope="module")
def url():
    with mock_server(step_s=0.002) as server:
        yield server.url


@pytest.mark.parametrize("chat", [False, True])
def test_counts_are_the_servers(url, chat):
    workload = ServeWorkload(concurrencies=(1, 4), num_prompts=6, input_len=16, output_len=12)
    target = Target(base_url=url, model="mock", chat=chat)

    def prompts_for(number, seed):
        return random_texts(number, 5, seed) if chat else random_prompts(number, 16, 250, seed)

    report = measure_serve(target, workload, prompts_for, "test", lambda _text: None)
    assert [row["concurrency"] for row in report.rows] == [1, 4]
    for row in report.rows:
        assert row["failed"] == 0, report.notes
        assert row["requests"] == max(6, 2 * row["concurrency"])
        assert row["output_tokens_per_s"] == pytest.approx(12 * row["requests_per_s"], rel=0.01)
        assert 0 < row["ttft_ms_p50"] <= row["e2e_ms_p50"]
        assert row["itl_ms_p50"] >= 0


def test_several_processes_do_the_same_work(url):
    workload = ServeWorkload(concurrencies=(3,), num_prompts=7, input_len=8, output_len=6, processes=2)
    target = Target(base_url=url, model="mock")
    report = measure_serve(
        target, workload, lambda n, s: random_prompts(n, 8, 250, s), "test", lambda _text: None, pid=os.getpid()
    )
    (row,) = report.rows
    assert (row["requests"], row["failed"]) == (7, 0), report.notes
    assert row["tokens_per_chunk"] >= 1
    assert row["server_peak_mib"] > 0
    assert row["children_cpu_s_per_mtok"] >= 0


def test_the_load_is_shared_out_without_loss():
    target = Target(base_url="http://127.0.0.1:9", model="m")
    bodies = tuple(b"%d" % number for number in range(11))
    order = LoadOrder(target=target, bodies=bodies, concurrency=5, request_rate=8.0)
    shares = share_out(order, 3)
    assert sorted(body for share in shares for body in share.bodies) == sorted(bodies)
    assert [share.concurrency for share in shares] == [2, 2, 1]
    assert sum(share.request_rate for share in shares) == pytest.approx(8.0)
    assert len(share_out(order, 9)) == 5


def test_an_open_loop_sends_at_its_rate(url):
    workload = ServeWorkload(
        concurrencies=(), num_prompts=20, input_len=4, output_len=2, request_rates=(100.0, 50.0), burstiness=100.0
    )
    target = Target(base_url=url, model="mock")
    report = measure_serve(target, workload, lambda n, s: random_prompts(n, 4, 250, s), "test", lambda _text: None)
    assert [row["request_rate"] for row in report.rows] == [100.0, 50.0]
    for row in report.rows:
        assert (row["failed"], row["requests"]) == (0, 20), report.notes
        assert row["requests_per_s"] < 1.5 * row["request_rate"]  # a closed loop of twenty would do thousands
        assert row["late_ms_p50"] >= 0


def test_percentiles_of_what_was_counted_between_two_looks():
    bounds = (0.001, 0.002, math.inf)
    before, after = AddedLatency(bounds, (5, 5, 5)), AddedLatency(bounds, (5, 105, 105))
    assert before.columns_since(after) == {"added_ms_p50": 1.5, "added_ms_p90": 1.9, "added_ms_p99": 1.99}
    beyond = AddedLatency(bounds, (5, 5, 105))
    assert before.columns_since(beyond)["added_ms_p50"] == 2.0  # no more is known than that it was longer
    assert before.columns_since(before) == {}
    assert before.columns_since(None) == {}


SSE = b"""HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"""


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_streams_of_other_servers_are_read(end):
    """Both kinds of line ends, comments that keep a connection alive, other fields, pieces cut anywhere."""
    chunk = b'data: {"choices":[{"text":"a"}]}'
    last = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
    lines = [b": ping", b"", b"event: x", chunk, b"", chunk, b"", last, b"", b"data: [DONE]", b"", b""]
    body = end.join(lines)
    for cut in range(1, len(body)):
        trace = Trace()
        _read_answer(trace, [(1.0, SSE), (2.0, body[:cut]), (3.0, body[cut:])])
        assert trace.error == ""  # the answer has no length, and its stream said that it is done
        assert (len(trace.arrivals), trace.num_tokens, trace.prompt_tokens) == (2, 2, 3)


def test_a_process_that_is_not_there_is_a_sentence():
    with pytest.raises(ConfigError, match="--pid"):
        read_cost(2**22 + 1)


def test_refused_requests_are_failures_with_the_servers_words(url):
    workload = ServeWorkload(concurrencies=(1,), num_prompts=2, output_len=4)
    target = Target(base_url=url + "/v1", model="absent")
    report = measure_serve(target, workload, lambda n, s: random_prompts(n, 4, 250, s), "test", lambda _text: None)
    assert report.rows[0]["failed"] == 2
    assert report.rows[0]["requests"] == 0
    assert "absent" in report.notes[0]


def test_a_server_that_is_not_there_is_a_failure():
    workload = ServeWorkload(concurrencies=(1,), num_prompts=2, output_len=4)
    target = Target(base_url="http://127.0.0.1:9", model="m")
    report = measure_serve(target, workload, lambda n, s: random_prompts(n, 4, 250, s), "test", lambda _text: None)
    assert report.rows[0]["failed"] == 2


def test_other_addresses_are_refused_with_a_sentence():
    with pytest.raises(ConfigError, match="plain http"):
        Target(base_url="https://127.0.0.1", model="m").headers(1)
