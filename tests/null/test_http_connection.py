"""HTTP/1.1 as it is on the wire: pieces, pipelines, old clients, bodies that wait to be asked for; merged chunks."""

from __future__ import annotations

import json
import socket

import pytest
from http_fixtures import MockServer, mock_server
from text_fixtures import byte_level_tokenizer, metaspace_tokenizer, sentencepiece_tokenizer

from penstock.frontend.openai.encode import encode_json
from penstock.frontend.openai.format import ChatFormat, CompletionFormat, Head, Shown
from penstock.frontend.text.detokenizer import Detokenizer, escape
from penstock.frontend.text.stream import TextDelta
from penstock.ipc.open_requests import News, OpenRequests
from penstock.mock.tokenizer import ByteTokenizer
from penstock.types.output import FinishReason, Terminal, TokenUpdate
from penstock.types.result import TokenLogprobs


@pytest.fixture(scope="module")
def server():
    with MockServer() as server:
        yield server


def connect(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def read_until(connection: socket.socket, marker: bytes) -> bytes:
    data = b""
    while marker not in data:
        piece = connection.recv(65536)
        assert piece, f"the connection ended after {data!r}"
        data += piece
    return data


def post(path: str, body: dict, version: str = "1.1", *headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "host: x", f"content-length: {len(data)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


def test_a_request_may_come_byte_by_byte(server):
    with connect(server) as connection:
        for byte in post("/tokenize", {"prompt": "abc"}):
            connection.sendall(bytes([byte]))
        assert b'"count":3' in read_until(connection, b"}")


def test_pipelined_requests_are_answered_in_their_order(server):
    requests = [post("/tokenize", {"prompt": "a" * length}) for length in range(1, 60)]
    with connect(server) as connection:
        connection.sendall(b"".join(requests))
        answers = b""
        while answers.count(b"HTTP/1.1 200") < len(requests) or not answers.endswith(b"}"):
            answers += connection.recv(65536)
    counts = [int(part.split(b",")[0].split(b"}")[0]) for part in answers.split(b'"count":')[1:]]
    assert counts == list(range(1, 60))


def test_a_pipelined_request_waits_for_a_stream(server):
    stream = post("/v1/completions", {"prompt": "abc", "max_tokens": 20, "stream": True, "ignore_eos": True})
    with connect(server) as connection:
        connection.sendall(stream + b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        data = read_until(connection, b'"version"')
    assert data.index(b"[DONE]") < data.index(b'"version"')


def test_old_clients_get_streams_without_chunks_and_an_end(server):
    body = {"prompt": "abc", "max_tokens": 5, "stream": True, "ignore_eos": True}
    with connect(server) as connection:
        connection.sendall(post("/v1/completions", body, "1.0"))
        data = b""
        while piece := connection.recv(65536):
            data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert rest.startswith(b"data: {")
    assert rest.endswith(b"data: [DONE]\n\n")


def test_a_body_that_waits_to_be_asked_for_is_asked_for(server):
    request = post("/tokenize", {"prompt": "abcd"}, "1.1", "expect: 100-continue")
    head, _, body = request.partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert b'"count":4' in read_until(connection, b"}")


def test_a_connection_is_kept_after_an_error_and_closed_when_asked(server):
    with connect(server) as connection:
        connection.sendall(post("/v1/nothing", {"a": "b"}))
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 404")
        connection.sendall(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        data = read_until(connection, b"}")
        assert b"connection: close" in data
        assert connection.recv(100) == b""


def test_paths_lose_their_query_and_percent_signs(server):
    with server.http() as http:
        assert http.get("/version?x=1").status_code == 200
        assert http.get("/%76ersion").status_code == 200


def test_an_upgrade_is_answered_as_the_request_that_it_is(server):
    with connect(server) as connection:
        connection.sendall(
            b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 200")


def test_header_values_cannot_end_their_line():
    with mock_server(names=("mock",)) as server, server.http() as http:
        answer = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "x\r\ny: z": 1})
        assert answer.status_code == 200
        assert "y" not in answer.headers


# -- the short way of text ----------------------------------------------------------------------------------------

TEXTS = ["", "a", 'q"uote', "back\\slash", "line\nend\t\r", "ünïcode 🦊", "\x00\x1f\x7f", "\u2028\u2029", "</script>"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("kind", [CompletionFormat, ChatFormat])
def test_the_short_way_writes_the_same_bytes(kind, usage, text):
    head, shown = Head(id="x", created=1, model="m@text@"), Shown(usage_in_chunks=usage)
    form = kind(head=head, shown=shown)
    assert form.plain_frame(0) is None, "the first chunk says more"
    form.chunk(0, TextDelta("first", (1,)))
    before, after = form.plain_frame(0)
    assert before + escape(text) + after == form.chunk(0, TextDelta(text, (2,)))


@pytest.mark.parametrize("shown", [Shown(logprobs=True), Shown(token_ids=True), Shown(prompt_logprobs=True)])
def test_there_is_no_short_way_where_tokens_are_shown(shown):
    form = CompletionFormat(head=Head(id="x", created=1, model="m"), shown=shown, prompts=((1,),))
    form.chunk(0, TextDelta("first", (1,)))
    assert form.plain_frame(0) is None


def test_pieces_of_escaped_text_can_be_joined():
    whole = "".join(TEXTS)
    assert b"".join(map(escape, TEXTS)) == escape(whole) == encode_json(whole)[1:-1]


@pytest.mark.parametrize("size", [1, 2, 3, 16])
@pytest.mark.parametrize("make", [byte_level_tokenizer, metaspace_tokenizer, sentencepiece_tokenizer, ByteTokenizer])
def test_escaped_detokenization_is_detokenization(make, size):
    tokenizer = make()
    ids = [*tokenizer.encode('Grüße "aus" 🦊 Köln\n' * 3, add_special_tokens=False), 10**6, *range(40)]
    plain, escaped = Detokenizer(tokenizer), Detokenizer(tokenizer)
    for start in range(0, len(ids), size):
        piece = ids[start : start + size]
        assert escaped.push_escaped(piece) == escape(plain.push(piece))
    assert escaped.flush() == plain.flush()


# -- merged news --------------------------------------------------------------------------------------------------


def test_news_keep_their_order_when_a_request_begins_to_say_more():
    news = News()
    news.add_columns([1, 2], [10, 20])
    rich = TokenUpdate(1, (11,), (TokenLogprobs((11,), (-1.0,), 1),))
    news.add_updates([rich])
    news.add_columns([1, 2], [12, 21])
    assert news.take_updates(1) == [TokenUpdate(1, (10,)), rich, TokenUpdate(1, (12,))]
    assert news.take_updates(2) == (TokenUpdate(2, (20, 21)),)
    assert news.take_updates(2) == ()


def test_sinks_that_take_plain_tokens_get_them_and_others_get_updates():
    class Both:
        def __init__(self):
            self.calls = []

        def on_tokens(self, token_ids, now):
            assert now > 0
            self.calls.append(list(token_ids))

        def __call__(self, updates, terminal):
            self.calls.append((list(updates), terminal))

    plain, calls, requests = Both(), [], OpenRequests()
    requests.add(1, plain)
    requests.add(2, lambda updates, terminal: calls.append((list(updates), terminal)))
    end = Terminal(1, FinishReason.LENGTH)
    news = News()
    news.add_columns([1, 2, 3], [5, 6, 7])
    requests.deliver_news(news)
    last = News()
    last.add_columns([1], [8])
    last.terminals.append(end)
    requests.deliver_news(last)
    assert plain.calls == [[5], ([TokenUpdate(1, (8,))], end)]
    assert calls == [([TokenUpdate(2, (6,))], None)]
    assert len(requests) == 1
