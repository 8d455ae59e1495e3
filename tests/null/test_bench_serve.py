"""The load generator against the mock server: it counts what the server counts, and failures are not results."""

from __future__ import annotations

import asyncio
import math
import os
import time
from types import SimpleNamespace

import pytest
from http_fixtures import mock_server

from penstock.bench import load_process
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


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time stands still while something can run, and jumps to the next timer when nothing can."""

    now = 0.0

    def time(self):
        return self.now

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()


class SlowClient:
    """In the place of the HTTP client: an answer takes ``answer_s``. It keeps when each request was sent, and the most
    that were open at a time. The request ``held_up`` takes a second of everybody's time to send."""

    answer_s, held_up = 5.0, None

    def __init__(self, target):
        self.num_open = 0

    async def send(self, body):
        loop = asyncio.get_running_loop()
        trace = Trace(started=loop.time(), status=200)
        self.sent.append(loop.time())
        if int(body) == self.held_up:
            loop.now += 1.0
        self.num_open += 1
        self.most_open.append(self.num_open)
        await asyncio.sleep(self.answer_s)
        self.num_open -= 1
        trace.ended = loop.time()
        return trace

    def close(self):
        pass


@pytest.fixture
def sent_by(monkeypatch):
    """Runs a load of 20 requests in virtual time: when they were sent, the most that were open, and the traces."""

    def run(held_up=None, **fields):
        client = type("Client", (SlowClient,), {"held_up": held_up, "sent": [], "most_open": []})
        monkeypatch.setattr(load_process, "Client", client)
        bodies = tuple(b"%d" % number for number in range(20))
        order = LoadOrder(target=Target(base_url="http://127.0.0.1:9", model="m"), bodies=bodies, **fields)
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            clock = SimpleNamespace(perf_counter=runner.get_loop().time)
            monkeypatch.setattr(load_process, "time", clock)
            traces = runner.run(load_process._run(order))
        return client.sent, max(client.most_open), traces

    return run


EVEN = {"concurrency": 20, "request_rate": 10.0, "burstiness": 1e9}
TENTHS = pytest.approx([(number + 1) / 10 for number in range(20)], abs=1e-3)


def test_an_open_loop_does_not_wait_for_answers(sent_by):
    sent, most_open, traces = sent_by(**EVEN)
    assert sent == TENTHS
    assert most_open == 20, "the first answer took longer than it takes to send them all"
    assert [trace.due for trace in traces] == sent


def test_an_open_loop_that_was_held_up_catches_up_with_its_schedule(sent_by):
    sent, _, traces = sent_by(held_up=4, **EVEN)
    assert [trace.due for trace in traces] == TENTHS
    assert sent[5:14] == pytest.approx([1.5] * 9, abs=1e-3)
    assert sent[15:] == pytest.approx([1.6, 1.7, 1.8, 1.9, 2.0], abs=1e-3)


def test_arrivals_of_an_open_loop_are_random_around_its_rate(sent_by):
    sent, _, _ = sent_by(**EVEN | {"burstiness": 1.0})
    gaps = [b - a for a, b in zip([0.0, *sent], sent, strict=False)]
    assert 0.05 < sum(gaps) / len(gaps) < 0.2
    assert max(gaps) > 2 * min(gaps)


def test_a_limit_of_an_open_loop_makes_requests_late(sent_by):
    sent, most_open, traces = sent_by(**EVEN | {"concurrency": 10})
    assert most_open == 10
    assert sent[10] == pytest.approx(5.1, abs=1e-3)
    assert traces[10].started - traces[10].due == pytest.approx(4.0, abs=1e-3)


def test_a_closed_loop_sends_when_an_answer_has_come(sent_by):
    sent, most_open, _ = sent_by(concurrency=4)
    assert sent == [5.0 * (number // 4) for number in range(20)]
    assert most_open == 4


def test_an_open_loop_goes_on_while_the_server_answers_nobody():
    """The engine gives its first token when all twenty requests are open, which a closed loop of fewer never has."""
    servers, seen = [], [0]
    patience = iter(range(15_000))  # of half a minute and more: a loop that waits for an answer must get one

    def token_of(_seed, _request, _position):
        while seen[0] < 20 and next(patience, None) is not None:
            seen[0] = max(seen[0], servers[0].app.admission.num_open)
            time.sleep(0.002)
        return 65

    with mock_server(token_of=token_of, max_num_seqs=32) as server:
        servers.append(server)
        workload = ServeWorkload(
            concurrencies=(), num_prompts=20, input_len=4, output_len=2, request_rates=(200.0,), burstiness=100.0
        )
        target = Target(base_url=server.url, model="mock")
        report = measure_serve(target, workload, lambda n, s: random_prompts(n, 4, 250, s), "test", lambda _text: None)
    assert seen == [20]
    assert (report.rows[0]["failed"], report.rows[0]["requests"]) == (0, 20), report.notes


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
