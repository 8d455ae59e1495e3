"""Every request ends once, and says how: dead engines, failures behind unread answers, and drains with slow readers."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest
from http_fixtures import MockServer, error_of, mock_server

from penstock.config.sections import ServerConfig
from penstock.frontend import server as serving
from penstock.mock.faults import MockFaults

NUM_TOKENS = 6_000  # with 20 log probabilities each: more than the system buffers for a connection
LONG = {"prompt": "abc", "max_tokens": NUM_TOKENS, "stream": True, "logprobs": 20, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": "Hello"}]
STREAMED = {
    "/v1/completions": {"prompt": "a", "stream": True},
    "/v1/chat/completions": {"messages": MESSAGES, "stream": True},
    "/v1/responses": {"input": "a", "stream": True},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9, "stream": True},
}


def long_server(**fields):
    return mock_server(max_model_len=8_000, num_blocks=1100, check_integrity=False, **fields)


@contextlib.contextmanager
def behind(server: MockServer, body: dict):
    """A connection that has asked and read nothing, when the engine has nothing more to say."""
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head.encode() + data)
        server.wait_for(lambda: server.app.admission.num_open == 1)
        server.wait_for(lambda: server.app.admission.num_open == 0, seconds=60)
        yield connection


def read_all(connection: socket.socket) -> bytes:
    received = []
    while piece := connection.recv(1 << 20):
        received.append(piece)
    return b"".join(received)


def events_of(answer: bytes) -> list[str]:
    """The events of a stream that has come to its end."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0]
    text = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if size == b"0":
            assert rest == b"\r\n"
            break
        text, rest = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return [event.removeprefix("data: ") for event in text.decode().split("\n\n") if event]


def tokens_of(events: list[str]) -> int:
    return sum(len(json.loads(event)["choices"][0]["logprobs"]["tokens"]) for event in events)


# -- requests that cannot begin -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMED)
def test_a_dead_engine_refuses_streams_as_it_refuses_the_rest(path):
    with mock_server() as server, server.http() as http:
        server.client.stop()  # from now on it takes no request
        refused = http.post(path, json=STREAMED[path])
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/json"
        assert "error" in refused.json()
        assert server.app.admission.num_open == 0
        assert server.app.service.responses.num_bytes == 0


@pytest.mark.parametrize("stream", [False, True])
def test_whatever_goes_wrong_at_the_start_of_a_request_leaves_nothing(stream, monkeypatch):
    with mock_server() as server, server.http() as http:
        submit, numbers = server.client.submit, iter(range(3))

        def fail_at_third(request, sink):
            if next(numbers) == 2:
                raise ValueError("a bug")
            submit(request, sink)

        monkeypatch.setattr(server.client, "submit", fail_at_third)
        failed = http.post("/v1/completions", json={"prompt": "a", "n": 4, "max_tokens": 500, "stream": stream})
        assert (failed.status_code, error_of(failed)["code"]) == (500, "internal")
        server.wait_idle()


# -- failures behind what the client has not read -----------------------------------------------------------------


def test_an_error_follows_all_that_was_made_before_it():
    with long_server(faults=MockFaults(die_at_step=NUM_TOKENS - 100)) as server, behind(server, LONG) as connection:
        *chunks, last = events_of(read_all(connection))
        assert json.loads(last)["error"]["code"] == "engine_dead"
        assert len(chunks) < tokens_of(chunks)  # the client was behind
        assert NUM_TOKENS - 200 < tokens_of(chunks) < NUM_TOKENS


def test_a_client_that_leaves_what_it_has_not_read_ends_a_request_that_has_failed():
    with long_server(faults=MockFaults(die_at_step=NUM_TOKENS - 100)) as server:
        with behind(server, LONG):
            assert server.app.service.generations
        server.wait_for(lambda: not server.app.service.generations)


# -- the end of the server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_drain_waits_for_readers(stream, monkeypatch):
    monkeypatch.setattr(serving, "_CLOSE_TIMEOUT_S", 0)
    with long_server() as server, server.http() as http, behind(server, {**LONG, "stream": stream}) as connection:
        server.request_stop()
        server.wait_for(lambda: http.get("/ready").status_code == 503)
        http.close()
        answer = read_all(connection)
        if stream:
            *chunks, last = events_of(answer)
            assert last == "[DONE]"
            assert tokens_of(chunks) == NUM_TOKENS
        else:
            body = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert body["usage"]["completion_tokens"] == NUM_TOKENS
        assert server.stopped()


@pytest.mark.parametrize(
    ("faults", "code"), [(MockFaults(), "shutting_down"), (MockFaults(die_at_step=NUM_TOKENS - 100), "engine_dead")]
)
def test_a_reader_that_is_too_slow_for_the_drain_is_told_so_instead_of_the_rest(faults, code, monkeypatch):
    monkeypatch.setattr(serving, "_CLOSE_TIMEOUT_S", 60)
    fields = {"server": ServerConfig(port=0, drain_timeout=0.1), "faults": faults}
    with long_server(**fields) as server, behind(server, LONG) as connection:
        server.request_stop()
        server.wait_for(lambda: not server.app.service.generations)
        *chunks, last = events_of(read_all(connection))
        assert json.loads(last)["error"]["code"] == code
        assert 0 < tokens_of(chunks) < NUM_TOKENS - 200
        assert server.stopped()
