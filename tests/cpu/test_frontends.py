"""Several frontend processes on one port: one engine, one limit, one set of counts, one end."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest

from penstock.bench.http_load import Target
from penstock.bench.serve import ServeWorkload, measure_serve
from penstock.bench.workload import random_prompts

NUM_CONNECTIONS = 24  # the system spreads them by hash: that one process gets all has odds of one in eight million


@contextlib.contextmanager
def two_frontends(*options: str):
    command = [sys.executable, "-m", "penstock.cli", "serve", "--mock", "--frontends", "2", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = None
            for line in process.stderr:
                url = url or re.search(r"http://127\.0\.0\.1:\d+", line)
                if line.startswith("Any OpenAI client"):
                    break
            assert url, "the server did not start"
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process, url.group()
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@pytest.fixture(scope="module")
def shared():
    """For tests that leave the server as they found it, but for its counts."""
    with two_frontends() as (process, url):
        yield process, url


def connections_by_process(process, url) -> list[int]:
    port = int(url.rpartition(":")[2])
    counts = []
    for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children()):
        established = [c for c in each.net_connections("tcp") if c.status == "ESTABLISHED" and c.laddr.port == port]
        counts.append(len(established))
    return [count for count in counts if count]


def counts_of(client) -> tuple[float, float, int]:
    """Tokens and requests that ended, as the metrics tell them, and tokens that were sent."""
    text = client.get("/metrics").text
    tokens = re.search(r"penstock:generation_tokens_total\{[^}]*\} (\S+)", text)
    ended = re.search(r'penstock:request_success_total\{[^}]*"length"[^}]*\} (\S+)', text)
    sent = client.get("/debug/load").json()["sent_tokens"]
    return float(tokens[1]) if tokens else 0.0, float(ended[1]) if ended else 0.0, sent


def test_both_answer_and_count_together(shared):
    process, url = shared
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False))
        before = counts_of(first)
        first.close()
        clients = [
            stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False)) for _ in range(NUM_CONNECTIONS)
        ]
        for client in clients:
            answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3, "ignore_eos": True})
            assert answer.json()["usage"]["completion_tokens"] == 3
        spread = connections_by_process(process, url)
        assert len(spread) == 2
        assert sum(spread) == NUM_CONNECTIONS
        shown = {counts_of(client) for client in clients}
        tokens, ended, sent = before
        assert shown == {(tokens + 3 * NUM_CONNECTIONS, ended + NUM_CONNECTIONS, sent + 3 * NUM_CONNECTIONS)}


def test_the_frontends_share_of_a_tokens_time_is_reported(shared):
    _, url = shared
    workload = ServeWorkload(concurrencies=(4,), num_prompts=8, input_len=4, output_len=20)
    target = Target(base_url=url, model="mock")
    report = measure_serve(target, workload, lambda n, s: random_prompts(n, 4, 250, s), "test", lambda _text: None)
    (row,) = report.rows
    assert 0 < row["added_ms_p50"] <= row["added_ms_p90"] <= row["added_ms_p99"]


def test_the_queue_is_one_whoever_answers():
    with two_frontends("--max-queue", "4", "--mock-time", "20ms") as (_, url), contextlib.ExitStack() as stack:
        body = {"prompt": "abc", "max_tokens": 200, "stream": True, "ignore_eos": True}
        streams, refused = [], []
        for _ in range(12):
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False))
            answer = stack.enter_context(client.stream("POST", "/v1/completions", json=body))
            (streams if answer.status_code == 200 else refused).append(answer)
        assert len(streams) == 4
        for answer in refused:
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert "queue is full" in answer.read().decode()
        for answer in streams:
            assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"
        client = stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False))
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2}).status_code == 200


def test_responses_that_only_one_of_them_could_store_are_not_stored(shared):
    _, url = shared
    with contextlib.ExitStack() as stack:
        answers = set()
        for _ in range(NUM_CONNECTIONS):
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False))
            body = {"input": "abc", "max_output_tokens": 3}
            response = client.post("/v1/responses", json=body).json()
            assert response["store"] is False
            for refused in ({"store": True}, {"previous_response_id": response["id"]}):
                error = client.post("/v1/responses", json={**body, **refused}).json()["error"]
                answers.add((error["param"], "--frontends" in error["message"]))
        assert answers == {("store", True), ("previous_response_id", True)}


def test_a_signal_drains_all_of_them():
    with two_frontends("--mock-time", "10ms") as (process, url), contextlib.ExitStack() as stack:
        children = psutil.Process(process.pid).children()
        body = {"prompt": "abc", "max_tokens": 150, "stream": True, "ignore_eos": True}
        streams = []
        for _ in range(NUM_CONNECTIONS):
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False))
            streams.append(stack.enter_context(client.stream("POST", "/v1/completions", json=body)))
        process.send_signal(signal.SIGTERM)
        for answer in streams:
            assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"
        assert process.wait(30) == 0
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("leaves", [False, True])
def test_a_second_signal_ends_all_of_them_at_once(leaves):
    """Also when the first one's own clients have gone and it only waits for the others."""
    # Without the second signal they would have 10 minutes to drain, and as long answers.
    with (
        two_frontends("--mock-time", "100ms", "--drain-timeout", "600") as (process, url),
        contextlib.ExitStack() as stack,
    ):
        children = psutil.Process(process.pid).children()
        body = {"prompt": "abc", "max_tokens": 4_000, "stream": True, "ignore_eos": True}
        streams = open_streams(stack, url, body)
        theirs = ports_of(other_frontend(process).pid)
        assert 0 < len([port for port, *_ in streams if port in theirs]) < NUM_CONNECTIONS
        if leaves:
            for port, answer, _ in streams:
                if port not in theirs:
                    answer.close()
        process.send_signal(signal.SIGTERM)
        probe = httpx.Client(base_url=url, timeout=60, verify=False)
        stack.enter_context(probe)
        wait_for(lambda: probe.get("/ready").status_code == 503, "it does not drain")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_a_signal_while_the_others_start_ends_all_of_them():
    command = [sys.executable, "-m", "penstock.cli", "serve", "--mock", "--frontends", "2", "--port", "0"]
    with subprocess.Popen([*command, "--drain-timeout", "600"], stderr=subprocess.DEVNULL) as process:
        server = psutil.Process(process.pid)
        try:
            wait_for(lambda: len(server.children()) == 2, "the other frontend is not started")
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_request_larger_than_the_queue_is_taken_when_nothing_is_open():
    with two_frontends("--max-queue", "4") as (process, url), contextlib.ExitStack() as stack:
        for _ in range(NUM_CONNECTIONS):
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False))
            answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 2, "n": 9})
            assert answer.status_code == 200
            assert len(answer.json()["choices"]) == 9
        assert len(connections_by_process(process, url)) == 2


def other_frontend(process) -> psutil.Process:
    return next(child for child in psutil.Process(process.pid).children() if "frontends" in " ".join(child.cmdline()))


def ports_of(pid: int) -> set[int]:
    """Of the other ends of a process's connections."""
    return {c.raddr.port for c in psutil.Process(pid).net_connections("tcp") if c.status == "ESTABLISHED"}


def open_streams(stack, url, body):
    """One connection each, with the port of its own end and the beginning of its answer."""
    streams = []
    # All clients before the first stream: making one takes long enough for others to end.
    clients = [
        stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False)) for _ in range(NUM_CONNECTIONS)
    ]
    for client in clients:
        answer = stack.enter_context(client.stream("POST", "/v1/completions", json=body))
        port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
        lines = answer.iter_lines()
        next(lines)
        streams.append((port, answer, lines))
    return streams


def wait_for(condition, what):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_clients_that_leave_end_their_requests_whichever_process_they_had():
    with two_frontends("--mock-time", "5ms") as (process, url), contextlib.ExitStack() as stack:
        body = {"prompt": "abc", "max_tokens": 4_000, "stream": True, "ignore_eos": True}
        with contextlib.ExitStack() as leaving:
            streams = open_streams(leaving, url, body)
            assert len(connections_by_process(process, url)) == 2
            client = stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False))
            assert client.get("/debug/load").json()["num_running"] == len(streams)
        wait_for(lambda: client.get("/debug/load").json()["num_running"] == 0, "requests are left in the engine")
        text = client.get("/metrics").text
        assert float(re.search(r'request_success_total\{[^}]*"abort"[^}]*\} (\S+)', text)[1]) == NUM_CONNECTIONS
        assert client.get("/debug/load").json()["num_open"] == 0


@pytest.mark.parametrize("mode", [(), ("--mock-ceiling",)])
def test_a_frontend_that_is_lost_takes_its_own_requests_alone_and_ends_the_server(mode):
    """The others are answered to their end; nothing new is taken; the exit says that something was wrong."""
    with two_frontends("--mock-time", "10ms", *mode) as (process, url), contextlib.ExitStack() as stack:
        body = {"prompt": "abc", "max_tokens": 200, "stream": True, "ignore_eos": True}
        streams = open_streams(stack, url, body)
        lost = other_frontend(process)
        theirs = ports_of(lost.pid)
        assert 0 < len([port for port, *_ in streams if port in theirs]) < NUM_CONNECTIONS
        lost.kill()
        for port, _, lines in streams:
            if port in theirs:
                with pytest.raises(httpx.TransportError):
                    list(lines)
            else:
                assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(30) == 1


def test_nothing_outlives_the_first_frontend():
    with two_frontends() as (process, _):
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        process.kill()
        gone, alive = psutil.wait_procs(children, timeout=30)
        assert (len(gone), alive) == (2, [])


def test_the_death_of_the_engine_is_known_to_all():
    with two_frontends("--mock-fault", "die=3") as (_, url), contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False)) for _ in range(NUM_CONNECTIONS)
        ]
        assert clients[0].post("/v1/completions", json={"prompt": "abc", "max_tokens": 50}).status_code == 503
        end = time.monotonic() + 20
        for client in clients:
            while client.get("/health").status_code != 503:
                assert time.monotonic() < end, "a frontend does not know that the engine is dead"
                time.sleep(0.02)


def test_a_taken_port_is_refused_although_it_is_shared(shared):
    port = shared[1].rpartition(":")[2]
    command = [sys.executable, "-m", "penstock.cli", "serve", "--mock", "--frontends", "2", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--port" in done.stderr


CALLS_TEMPLATE = """{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}
{% for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endfor %}"""


def test_calls_are_read_and_masked_whichever_process_answers(tmp_path):
    """The mock says broken calls; with a call demanded, masks of the one engine mend them."""
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    body = {"messages": [{"role": "user", "content": "abc"}], "tools": [tool], "max_tokens": 120}
    (tmp_path / "calls.jinja").write_text(CALLS_TEMPLATE)
    options = (
        "--chat-template",
        str(tmp_path / "calls.jinja"),
        "--mock-fault",
        "garbage=hermes",
        "--mock-time",
        "0.2ms",
    )
    with two_frontends(*options) as (process, url), contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False)) for _ in range(NUM_CONNECTIONS)
        ]
        contents = set()
        for client in clients:
            free = client.post("/v1/chat/completions", json=body).json()["choices"][0]
            contents.add(free["message"]["content"])
            streamed = client.post("/v1/chat/completions", json=body | {"tool_choice": "required", "stream": True})
            events = [json.loads(line[6:]) for line in streamed.text.split("\n\n") if line.startswith("data: {")]
            deltas = [event["choices"][0]["delta"] for event in events]
            assert not any(delta.get("content") for delta in deltas)
            functions = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
            assert functions[0]["name"] == "get_weather"
            assert re.match(r"\{\s*(\}|$)", "".join(function["arguments"] for function in functions))
        assert len(connections_by_process(process, url)) == 2
        assert any("no_such_tool" in content for content in contents)
