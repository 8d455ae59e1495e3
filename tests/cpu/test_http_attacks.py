"""Hostile clients, small: bodies, HTTP, constraints, templates, keys; slow, gone and too many ones."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest
from attack_fixtures import keeps
from http_fixtures import MockServer, mock_server
from reliability import bodies, clients, http, keys, templates
from reliability.wire import Connection, ask, get, post

import penstock.frontend.protocol as protocol_module
from penstock.config.sections import ServerConfig
from penstock.errors import InvalidRequestError, UnsupportedModelError
from penstock.frontend.buffers import Buffers
from penstock.frontend.chat import limits as limits_module
from penstock.frontend.chat import template as template_module
from penstock.frontend.chat.sandbox import MAX_SOURCE_CHARACTERS
from penstock.frontend.chat.template import ChatTemplate
from penstock.frontend.openai import decode as decode_module
from penstock.frontend.openai.decode import count_values
from penstock.frontend.routes.table import ROUTES
from penstock.mock.faults import MockFaults

LARGE = ("00,000", "a million empty lists", "a prompt of 16 MiB")  # parts of their names: they are for the whole run


def config(**fields) -> ServerConfig:
    return ServerConfig(port=0, **fields)


@pytest.fixture(scope="module")
def server():
    logging.getLogger("penstock").setLevel(logging.ERROR)  # unknown fields are many here
    with MockServer(max_model_len=128, check_integrity=False, server=config(request_timeout=10.0)) as server:
        yield server
        server.wait_idle()
        assert server._http._starter.buffers.used == 0
    logging.getLogger("penstock").setLevel(logging.NOTSET)


def test_malformed_bodies(server):
    counts = keeps(bodies.malformed_bodies(server.port, 600, seed=1)).counts
    assert counts["400"] > 300
    assert set(counts) <= {"200", "400", "408"}


@pytest.mark.parametrize("name", [name for name in bodies.GIANT if not any(one in name for one in LARGE)])
def test_requests_for_too_much(server, name):
    keeps(bodies.giant_requests(server.port, (name,)))


def test_broken_and_ambiguous_http(server):
    keeps(http.wrong_http(server.port))


def test_rare_http(server):
    keeps(http.right_http(server.port))


QUICK = ("regex that ends early", "regex (a|a)*b", "schema nested 2,000 deep", "schema that refers to a file")


def test_hostile_constraints(server):
    keeps(bodies.hostile_constraints(server.port, QUICK))


def test_a_broken_chunk_ends_a_request_that_waits_for_its_body(server):
    """The head was right, so that the request is under way when the body turns out to be none."""

    async def attack():
        async with Connection(server.port) as connection:
            await connection.send(
                b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
            )
            await asyncio.sleep(0.05)
            await connection.send(b"zz\r\n")
            return await connection.answer(seconds=20)

    answer = asyncio.run(attack())
    assert answer.status == 400
    assert "HTTP" in answer.sentence


def test_garbage_behind_a_request_is_answered_after_it(server):
    async def attack():
        async with Connection(server.port) as connection:
            await connection.send(get("/version") + b"\x00\x00\r\n\r\n")
            return [(await connection.answer(seconds=20)).status for _ in range(3)]

    assert asyncio.run(attack()) == [200, 400, 0]


def test_a_head_may_come_in_pieces_up_to_its_limit(server):
    """What has been read of a head counts once, however it came."""
    head = get("/version", *(f"y{i}: {'z' * 1000}" for i in range(55)))

    async def ask_slowly():
        async with Connection(server.port) as connection:
            for start in range(0, len(head), 8000):
                await connection.send(head[start : start + 8000])
                await asyncio.sleep(0.005)
            return await connection.answer()

    assert asyncio.run(ask_slowly()).status == 200


def test_trailers_are_no_headers():
    data = post("/tokenize", {"prompt": "a"}).partition(b"\r\n\r\n")[2]
    request = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    request += b"%x\r\n%b\r\n0\r\nx-api-key: secret\r\n\r\n" % (len(data), data)
    with mock_server(server=config(api_key=("secret",))) as server:
        assert asyncio.run(ask(server.port, request)).status == 401


def test_values_are_counted_as_json_has_them(monkeypatch):
    monkeypatch.setattr(decode_module, "MAX_VALUES", 10)
    assert count_values(b'{"a":[1,2,3]}') == 5
    assert count_values(b'{"a":"' + b",[{" * 100 + b'\\"' + b",,,,,,,,,," + b'"}') == 2
    with pytest.raises(InvalidRequestError, match="Send fewer"):
        count_values(b"[" + b"[]," * 20 + b"1]")


def test_bodies_of_all_requests_together_are_bounded():
    limited = config(max_buffered_bytes=300_000)
    with mock_server(server=limited) as server:
        body = {"prompt": "a", "max_tokens": 1, "user": "x" * 400_000}
        refused = asyncio.run(ask(server.port, post("/v1/completions", body)))
        assert refused.status == 503
        assert "--max-buffered-bytes" in refused.sentence
        assert "retry-after" in refused.headers
        small = asyncio.run(ask(server.port, post("/v1/completions", {"prompt": "a", "max_tokens": 1})))
        assert small.status == 200
        server.wait_for(lambda: server._http._starter.buffers.used == 0)


def test_buffers_count():
    buffers = Buffers(10)
    assert buffers.take(10)
    assert not buffers.take(1)
    buffers.take_anyway(5)
    buffers.give_back(15)
    assert buffers.used == 0


# -- keys ---------------------------------------------------------------------------------------------------------


def test_every_route_asks_for_a_key_but_those_that_are_open_by_decision():
    with mock_server(server=config(api_key=("first", "second"))) as server:
        keeps(keys.keys_on_all_routes(server.port, "first"))
        keeps(keys.stored_by_another(server.port, "first", "second"))
    assert keys.OPEN - {"/openapi.json"} <= {route.path for route in ROUTES}


# -- clients ------------------------------------------------------------------------------------------------------


def test_slow_senders(monkeypatch):
    monkeypatch.setattr(protocol_module, "HEAD_TIMEOUT_S", 0.3)
    monkeypatch.setattr(protocol_module, "BODY_TIMEOUT_S", 0.3)
    with mock_server() as server:
        keeps(clients.slow_senders(server.port, 5, 5, 20, 0.05))


def test_idle_connections_make_room():
    with mock_server(server=config(max_connections=20)) as server:
        counts = keeps(clients.idle_connections(server.port, 60, 20)).counts
        assert counts["closed"] >= 40


def test_a_connection_too_many_is_told_so():
    with mock_server(server=config(max_connections=8), step_s=0.002) as server:
        counts = keeps(clients.busy_connections(server.port, 8, 4)).counts
        assert counts == {"503": 4, "done": 8}


def test_readers_that_stop_are_given_up():
    limited = config(stall_timeout=0.5, max_unread_bytes=64 << 10)
    with mock_server(server=limited, max_model_len=8000, num_blocks=2000, check_integrity=False) as server:
        counts = keeps(clients.stopped_readers(server.port, 2, 4000, 60, logprobs=20)).counts
        assert counts["reset"] == 2
        server.wait_for(lambda: server._http._starter.buffers.used == 0)
        server.wait_for(lambda: not server._http._starter.connections)


def test_a_late_reader_gets_an_error_as_its_last_event():
    limited = config(max_unread_bytes=64 << 10)
    with mock_server(server=limited, max_model_len=8000, num_blocks=2000, check_integrity=False) as server:
        counts = keeps(clients.late_readers(server.port, 1, 7000, 3, logprobs=20)).counts
        assert counts == {"reader_too_slow": 1}


def test_pipelined_requests_wait_for_their_reader():
    """A client that asks and does not read is not answered further: its answers would fill the memory."""
    with mock_server() as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        with connection:
            connection.sendall(get("/openapi.json") * 1000)
            server.wait_for(lambda: any(one.paused for one in server._http._starter.connections))
            unsent = [one.transport.get_write_buffer_size() for one in server._http._starter.connections]
            assert max(unsent) < 1 << 20


def test_disconnects_leave_nothing():
    with mock_server(step_s=0.001, check_integrity=True) as server:
        keeps(clients.disconnects(server.port, 100, concurrency=16, max_tokens=200))
        server.wait_idle()
        server.wait_for(lambda: server._http._starter.buffers.used == 0)


def test_disconnects_in_mid_stream_leave_nothing():
    with mock_server(step_s=0.001, check_integrity=True) as server:
        outcome = keeps(
            clients.disconnects(server.port, 60, concurrency=16, max_tokens=2000, places=("stream",)),
        )
        assert outcome.counts == {"stream": 60}
        server.wait_idle()
        server.wait_for(lambda: server._http._starter.buffers.used == 0)


def test_overload():
    with mock_server(server=config(max_queue=8), step_s=0.002) as server:
        counts = keeps(clients.overload(server.port, 60, 40)).counts
        assert counts["429"]
        assert counts["done"] >= 8


def test_every_open_request_ends_once_when_the_server_is_stopped():
    with mock_server(step_s=0.002, max_num_seqs=64) as server:
        counts = keeps(clients.while_it_ends(server.port, 6, 120, server.request_stop)).counts
        assert (counts["stream done"], counts["whole done"]) == (6, 6)
        assert server.stopped()


def test_every_open_request_ends_once_when_the_engine_dies():
    faults = MockFaults(die_at_step=150)
    with mock_server(step_s=0.002, max_num_seqs=64, faults=faults) as server:
        keeps(clients.while_it_ends(server.port, 6, 1500, lambda: None, "engine_dead", "503"))


SILENT = [name for name in templates.HOSTILE if name.startswith("Python's globals")]


# -- templates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(templates.HOSTILE))
def test_hostile_templates_are_refused_or_say_nothing(name, monkeypatch):
    monkeypatch.setattr(template_module._render, "__defaults__", (0.2,))
    monkeypatch.setattr(template_module, "_PROBE_TIMEOUT_S", 0.05)
    template = ChatTemplate(templates.HOSTILE[name], {})
    if name in SILENT:
        assert template.render([{"role": "user", "content": "a"}]) == ""
        return
    with pytest.raises(InvalidRequestError, match=r"^The model's chat template (does too much|refuses|cannot render)"):
        template.render([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    "source", ["{{ " + "(" * 50_000, "{#" + "a" * MAX_SOURCE_CHARACTERS + "#}", "{{ 'a'|urlize }}"]
)
def test_templates_that_cannot_be_compiled_are_refused(source):
    with pytest.raises(UnsupportedModelError, match="--chat-template"):
        ChatTemplate(source, {})


def test_a_rendering_counts_anew(monkeypatch):
    monkeypatch.setattr(limits_module, "MAX_MADE", 1000)
    template = ChatTemplate("{{ 'a' * 600 }}", {})
    for _ in range(3):
        assert len(template.render([{"role": "user", "content": "a"}])) == 600


def test_loops_know_their_length_and_neighbours():
    template = ChatTemplate(
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ' last' if loop.last }}"
        "{{ loop.previtem.content if loop.previtem is defined }}{{ ',' if not loop.last }}{% else %}none{% endfor %}",
        {},
    )
    messages = [{"role": "user", "content": name} for name in "ab"]
    assert template.render(messages) == "1/2,2/2 lasta"
