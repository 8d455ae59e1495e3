"""Keys, limits, overload, disconnects, drain and death: what happens when things are not as they should be."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import httpx
import pytest
from http_fixtures import MockServer, error_of, mock_server

from penstock.config.sections import ServerConfig
from penstock.errors import ConfigError
from penstock.frontend.app import App
from penstock.frontend.exchange import CONGESTED_BYTES
from penstock.frontend.protocol import MAX_HEAD_BYTES
from penstock.frontend.server import bind, make_server, run
from penstock.mock.faults import MockFaults

SLOW = {"prompt": "abc", "max_tokens": 2000}
MESSAGES = [{"role": "user", "content": "Hello"}]


def config(**fields) -> ServerConfig:
    return ServerConfig(port=0, **fields)


@pytest.fixture(scope="module")
def server():
    with MockServer() as server:
        yield server


# -- routes and bodies --------------------------------------------------------------------------------------------


def test_unknown_routes_and_methods_answer_with_the_error_object(server):
    with server.http() as http:
        missing = http.get("/v1/nothing")
        wrong = http.get("/v1/completions")
        deleted = http.delete("/health")
    assert missing.status_code == 404
    assert error_of(missing)["code"] == "unknown_route"
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert error_of(wrong)["code"] == "method_not_allowed"
    assert deleted.headers["allow"] == "GET, HEAD"


def test_head_is_get_without_body(server):
    with server.http() as http:
        answer = http.head("/health")
    assert answer.status_code == 200
    assert answer.content == b""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"prompt":' + b'{"a":' * 50_000,
        b'{"prompt": 1e999}',
        b"[]",
        b"null",
        b'"text"',
        b"12",
    ],
    ids=lambda body: repr(body[:16]),
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_broken_bodies_are_400(server, path, body):
    with server.http() as http:
        response = http.post(path, content=body)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a\x00b"},
        {"prompt": "a", "model": "\x00"},
        {"prompt": "a", "seed": 10**400},
        {"prompt": "a", "temperature": 10**400},
        {"prompt": "a", "stop": "\x00"},
        {"prompt": "\ufffe\uffff"},
        {"prompt": "a", "user": "\x00" * 1000},
        {"prompt": "a", "logit_bias": {"\x00": 1}},
        {"prompt": "a", "logit_bias": {"1" * 5000: 1}},
        {"prompt": "a", "\x00" * 3000: 1},
    ],
    ids=str,
)  # fmt: skip
def test_odd_values_never_become_server_errors(server, fields):
    with server.http() as http:
        response = http.post("/v1/completions", content=json.dumps(fields))
    assert response.status_code < 500
    response.json()


def test_large_bodies_are_413_declared_or_not():
    with mock_server(server=config(max_request_bytes=1000)) as server, server.http() as http:
        declared = http.post("/v1/completions", json={"prompt": "a" * 2000})
        with server.http() as http:
            chunked = http.post("/v1/completions", content=iter([b'{"prompt": "', b"a" * 2000, b'"}']))
        with server.http() as http:
            fits = http.post("/v1/completions", json={"prompt": "a" * 900})
    assert declared.status_code == chunked.status_code == 413
    assert "1000" in error_of(declared)["message"]
    assert fits.status_code == 200


def raw_exchange(server: MockServer, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        # The server may have answered and closed before it read all.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
        return answer


def test_header_limits_and_invalid_http(server):
    assert raw_exchange(server, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    large = b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * (MAX_HEAD_BYTES + 1)
    assert raw_exchange(server, large).startswith(b"HTTP/1.1 431 ")
    many = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + b"x: y\r\n" * 1000 + b"\r\n"
    assert raw_exchange(server, many).startswith(b"HTTP/1.1 200 ")


# -- keys and CORS ------------------------------------------------------------------------------------------------


def test_keys_guard_everything_but_the_public_routes():
    with mock_server(server=config(api_key=("secret", "schlüssel"))) as server, server.http() as http:
        for path in ("/health", "/ready", "/version", "/", "/openapi.json"):
            assert http.get(path).status_code == 200, path
        for path in ("/v1/models", "/metrics", "/debug/decisions", "/debug/load"):
            refused = http.get(path)
            assert refused.status_code == 401, path
            assert error_of(refused)["code"] == "invalid_api_key"
            assert http.get(path, headers={"authorization": "Bearer secret"}).status_code == 200, path
        for header in ("Bearer secre", "secret", "Basic secret", "Bearer secret2", "Bearer"):
            assert http.get("/v1/models", headers={"authorization": header}).status_code == 401, header
        umlaut = {b"authorization": "Bearer schlüssel".encode()}
        assert http.get("/v1/models", headers=umlaut).status_code == 200
        assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 401
        assert "secret" not in http.get("/debug/decisions", headers={"authorization": "Bearer secret"}).text


def test_cors_only_for_configured_origins():
    preflight = {"origin": "https://good.example", "access-control-request-method": "POST"}
    with (
        mock_server(server=config(cors_origins=("https://good.example",), api_key=("k",))) as server,
        server.http() as http,
    ):
        allowed = http.options("/v1/completions", headers=preflight)
        other = http.options("/v1/completions", headers={**preflight, "origin": "https://bad.example"})
        refused = http.post("/v1/completions", json={}, headers={"origin": "https://good.example"})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-origin" not in other.headers
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://good.example"


def test_without_cors_there_are_no_cors_headers(server):
    with server.http() as http:
        answer = http.get("/health", headers={"origin": "https://any.example"})
        preflight = http.options("/v1/completions", headers={"origin": "https://any.example"})
    assert "access-control-allow-origin" not in answer.headers
    assert preflight.status_code == 405


# -- overload -----------------------------------------------------------------------------------------------------


def stream_in_background(server: MockServer, body: dict) -> tuple[threading.Thread, list]:
    """Start a streamed completion on a thread; the list gets its lines."""
    lines: list = []

    def main() -> None:
        with server.http() as http, http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            lines.append(response.status_code)
            lines.extend(line for line in response.iter_lines() if line)

    thread = threading.Thread(target=main)
    thread.start()
    return thread, lines


def test_a_full_queue_answers_429_with_retry_after():
    with mock_server(server=config(max_queue=2), step_s=0.005) as server:
        running = [stream_in_background(server, {"prompt": "abc", "max_tokens": 150}) for _ in range(2)]
        server.wait_for(lambda: server.app.admission.num_open == 2)
        with server.http() as http:
            refused = http.post("/v1/completions", json={"prompt": "a"})
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert error_of(refused)["code"] == "rate_limit_exceeded"
            for thread, lines in running:
                thread.join()
                assert lines[0] == 200
                assert lines[-1] == "data: [DONE]"
            assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_more_requests_than_seats_all_finish():
    with mock_server(max_num_seqs=2, num_blocks=24) as server:
        running = [stream_in_background(server, {"prompt": "x" * 50, "max_tokens": 100}) for _ in range(12)]
        for thread, lines in running:
            thread.join()
            assert lines[-1] == "data: [DONE]"
        server.wait_idle()


def test_deadline_ends_requests():
    with mock_server(server=config(request_timeout=0.1), step_s=0.02) as server, server.http() as http:
        whole = http.post("/v1/completions", json=SLOW)
        assert whole.status_code == 408
        assert error_of(whole)["code"] == "deadline"
        with http.stream("POST", "/v1/completions", json={**SLOW, "stream": True}) as response:
            lines = [line for line in response.iter_lines() if line]
        assert "error" in json.loads(lines[-1].removeprefix("data: "))
        server.wait_idle()


def test_a_request_may_bring_its_own_deadline_but_not_a_later_one_than_the_servers():
    with mock_server(step_s=0.02) as server, server.http() as http:
        for path, prompt in (
            ("completions", {"prompt": "a"}),
            ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ):
            hurried = http.post(f"/v1/{path}", json={**prompt, "max_tokens": 1000, "request_timeout": 0.1})
            assert (hurried.status_code, error_of(hurried)["code"]) == (408, "deadline")
            patient = http.post(f"/v1/{path}", json={**prompt, "max_tokens": 3, "request_timeout": 1e300})
            assert patient.status_code == 200
            assert "penstock-warning" not in patient.headers
        for wrong in (0, -1, "1", True):
            refused = http.post("/v1/completions", json={"prompt": "a", "request_timeout": wrong})
            assert (refused.status_code, error_of(refused)["param"]) == (400, "request_timeout")
    with mock_server(server=config(request_timeout=0.1), step_s=0.02) as server, server.http() as http:
        assert http.post("/v1/completions", json={**SLOW, "request_timeout": 60}).status_code == 408


@pytest.mark.parametrize(("policy", "warns"), [("fcfs", True), ("priority", False)])
def test_a_priority_that_nothing_obeys_is_warned_of(policy, warns):
    with mock_server(scheduling_policy=policy) as server, server.http() as http:
        for path, body in (
            ("completions", {"prompt": "a"}),
            ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
        ):
            given = http.post(f"/v1/{path}", json={**body, "priority": 3})
            assert given.status_code == 200
            assert ("priority" in given.headers.get("penstock-warning", "")) == warns
            assert "penstock-warning" not in http.post(f"/v1/{path}", json={**body, "priority": 0}).headers
            assert "penstock-warning" not in http.post(f"/v1/{path}", json=body).headers


# -- clients that leave, or read slowly ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 4])
def test_a_client_that_leaves_frees_its_blocks(stream, n):
    with mock_server(step_s=0.005, max_num_seqs=8) as server:
        body = json.dumps({**SLOW, "stream": stream, "n": n}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + body)
            if stream:
                assert connection.recv(1000)
            server.wait_for(lambda: server.client.stats().num_running == n)
            assert server.app.admission.num_open == n
        server.wait_idle()
        with server.http() as http:
            text = http.get("/metrics").text
        assert f'request_success_total{{engine="0",finished_reason="abort",model_name="mock"}} {n}.0' in text


def test_a_client_that_leaves_before_its_body_is_read_costs_nothing(server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
    server.wait_idle()


def test_a_slow_reader_gets_everything_in_fewer_chunks_and_delays_nobody():
    with mock_server(max_model_len=8_000, num_blocks=1100, check_integrity=False) as server:
        body = {"prompt": "abc", "max_tokens": 6_000, "stream": True, "logprobs": 20}  # more than a kernel buffers
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        with connection:
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(head.encode() + data)
            server.wait_for(lambda: server.app.admission.num_open == 1)
            with server.http() as http:
                assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 50}).status_code == 200
            server.wait_for(lambda: server.app.admission.num_open == 0, seconds=60)
            received = []
            while piece := connection.recv(1 << 20):
                received.append(piece)
        answer = b"".join(received)
        text = answer.decode()
        assert text.count("data: {") < 6_000
        *events, last = _events(text)
        assert last == "[DONE]"
        pieces = [json.loads(event) for event in events]
        tokens = [name for piece in pieces for name in piece["choices"][0]["logprobs"]["tokens"]]
        assert len(tokens) == 6_000
        with server.http() as http:
            whole = http.post("/v1/completions", json={**body, "stream": False, "logprobs": None}).json()
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["choices"][0]["text"]
        assert len(text) > 2 * CONGESTED_BYTES


def _events(raw: str) -> list[str]:
    """Bodies of server-sent events out of a chunked HTTP answer."""
    data = raw.encode()
    at, chunks = data.index(b"\r\n\r\n") + 4, []
    while at < len(data):
        begin = data.index(b"\r\n", at) + 2
        end = begin + int(data[at : begin - 2], 16)
        chunks.append(data[begin:end])
        at = end + 2
    assert chunks[-1] == b"", "the chunk that ends the answer"
    *events, rest = b"".join(chunks).decode().split("\n\n")
    assert rest == ""
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


# -- starting, draining, dying ------------------------------------------------------------------------------------


def test_an_application_without_engine_says_that_it_is_starting():
    with _serving(App(config(api_key=()))) as url, httpx.Client(base_url=url) as http:
        assert http.get("/health").status_code == 200
        assert http.get("/").status_code == 200
        for method, path in (("GET", "/ready"), ("GET", "/v1/models"), ("POST", "/v1/completions")):
            response = http.request(method, path)
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert "starting" in error_of(response)["message"]


@contextlib.contextmanager
def _serving(app: App):
    """An application on a socket, whatever is attached to it."""
    ready, urls = threading.Event(), []

    def on_ready(host: str, port: int) -> None:
        urls.append(f"http://{host}:{port}")
        ready.set()

    servers = []

    async def main() -> None:
        servers.append(make_server(app, app.server, on_ready=on_ready))
        await servers[0].serve_bound()

    thread = threading.Thread(target=lambda: run(main()))
    thread.start()
    try:
        assert ready.wait(20)
        yield urls[0]
    finally:
        servers[0].request_stop()
        thread.join(20)
    assert not thread.is_alive()


def test_drain_finishes_what_is_open_and_refuses_what_is_new():
    with mock_server(step_s=0.005) as server:
        thread, lines = stream_in_background(server, {"prompt": "abc", "max_tokens": 150})
        server.wait_for(lambda: len(lines) > 2)
        server.request_stop()
        with server.http() as http:
            server.wait_for(lambda: http.get("/ready").status_code == 503)
            refused = http.post("/v1/completions", json={"prompt": "a"})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert http.get("/health").status_code == 200
        thread.join()
        assert lines[-1] == "data: [DONE]"
        assert len(lines) == 1 + 150 + 1
        assert server.stopped()


def test_drain_gives_up_after_its_timeout_and_says_so():
    with mock_server(server=config(drain_timeout=0.1), step_s=0.02) as server:
        thread, lines = stream_in_background(server, SLOW)
        server.wait_for(lambda: len(lines) > 2)
        server.request_stop()
        thread.join()
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "service_unavailable_error"
        assert server.stopped()


def test_a_drain_that_gives_up_tells_plain_answers_when_to_come_back():
    with mock_server(server=config(drain_timeout=0.1), step_s=0.02) as server, server.http() as http:
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(http.post("/v1/completions", json={**SLOW, "stream": False}))
        )
        thread.start()
        server.wait_for(lambda: server.app.admission.num_open)
        server.request_stop()
        thread.join()
    assert answers[0].status_code == 503
    assert int(answers[0].headers["retry-after"]) >= 1


def test_a_dead_engine_ends_streams_with_an_error_and_health_says_so():
    with mock_server(faults=MockFaults(die_at_step=20), step_s=0.01) as server, server.http() as http:
        thread, lines = stream_in_background(server, SLOW)
        whole = http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1000})
        thread.join()
        assert whole.status_code == 503
        assert lines[0] == 200
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "engine_dead"
        assert "data: [DONE]" not in lines
        server.wait_for(lambda: http.get("/health").status_code == 503)
        assert "died" in error_of(http.get("/health"))["message"]
        refused = [whole, http.get("/health"), http.get("/ready"), http.post("/v1/completions", json={"prompt": "a"})]
        assert [answer.status_code for answer in refused] == [503] * 4
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert server.app.admission.num_open == 0


def test_one_failed_sequence_fails_its_request_and_no_other():
    with (
        mock_server(faults=MockFaults(failed_requests={2: "Its logits were not finite."})) as server,
        server.http() as http,
    ):
        answers = [http.post("/v1/completions", json={"prompt": "a", "n": n}) for n in (1, 2, 1)]
        server.wait_idle()
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert "not finite" in error_of(answers[1])["message"]


def test_a_request_that_fails_before_its_first_token_has_a_status_even_when_streamed():
    with (
        mock_server(faults=MockFaults(failed_requests={1: "Its logits were not finite."})) as server,
        server.http() as http,
    ):
        answer = http.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert answer.status_code == 500
    assert "not finite" in error_of(answer)["message"]


def test_a_taken_port_is_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="--port"):
            bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="not an address"):
        bind("no.such.host.invalid", 0)
