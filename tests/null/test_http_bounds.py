"""What one request makes the server do and hold: long work is done on threads, and what it makes is counted."""

from __future__ import annotations

import threading

from http_fixtures import error_of, mock_server
from tool_fixtures import TEMPLATE

from penstock.config.sections import ServerConfig
from penstock.frontend.routes import responses, tokens
from penstock.frontend.service import BATCH_CHARACTERS, INLINE_CHARACTERS
from penstock.mock.tokenizer import ByteTokenizer
from penstock.types.structured import MAX_TAGS

LONG = "long text, " * (INLINE_CHARACTERS // 8)


def recorded(monkeypatch, owner, name):
    """Names of the threads on which a function is called."""
    threads: list[str] = []
    function = getattr(owner, name)

    def recording(*args, **options):
        threads.append(threading.current_thread().name)
        return function(*args, **options)

    monkeypatch.setattr(owner, name, recording)
    return threads


def on_pool(threads: list[str]) -> bool:
    return bool(threads) and all(name.startswith("tokenize") for name in threads)


def test_many_prompts_are_tokenized_in_batches_on_threads(monkeypatch):
    prompts = [f"{number:02} " + "x" * 4000 for number in range(40)]
    batches: list[int] = []
    with mock_server(max_model_len=8192, num_blocks=2048) as server, server.http() as http:
        threads = recorded(monkeypatch, ByteTokenizer, "encode")
        pool = server.app.service._pool
        submit = pool.submit

        def submitting(work, *args):
            batches.append(sum(map(len, args[0])) if args else 0)
            return submit(work, *args)

        monkeypatch.setattr(pool, "submit", submitting)
        body = {"prompt": prompts, "max_tokens": 1, "echo": True}
        answer = http.post("/v1/completions", json=body).json()
    assert [choice["text"][:-1] for choice in answer["choices"]] == prompts
    assert on_pool(threads)
    assert max(batches) <= BATCH_CHARACTERS
    assert sum(batches) == sum(map(len, prompts))
    assert batches[-1] == 0  # the echoes


def test_few_short_prompts_are_not_sent_to_threads(monkeypatch):
    with mock_server() as server, server.http() as http:
        threads = recorded(monkeypatch, ByteTokenizer, "encode")
        assert http.post("/v1/completions", json={"prompt": ["a", "b"], "max_tokens": 1}).status_code == 200
    assert len(threads) == 2
    assert not any(name.startswith("tokenize") for name in threads)


def test_long_answers_about_tokens_are_made_on_threads(monkeypatch):
    with mock_server() as server, server.http() as http:
        texts = recorded(monkeypatch, ByteTokenizer, "token_text")
        written = recorded(monkeypatch, tokens, "encode_json")
        decoded = recorded(monkeypatch, ByteTokenizer, "decode")
        answer = http.post("/tokenize", json={"prompt": LONG, "return_token_strs": True}).json()
        back = http.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert "".join(answer["token_strs"]) == LONG
    assert back["prompt"] == LONG
    assert on_pool(texts)
    assert on_pool(written)
    assert on_pool(decoded)
    assert len(texts) == len(set(LONG))


def test_answers_about_tokens_are_counted():
    with mock_server(server=ServerConfig(port=0, max_buffered_bytes=2_000_000)) as server, server.http() as http:
        assert http.post("/tokenize", json={"prompt": "x" * 10_000}).status_code == 200
        refused = http.post("/tokenize", json={"prompt": "x" * 40_000})
        assert (refused.status_code, error_of(refused)["code"]) == (503, "buffers_full")
        server.wait_for(lambda: server._http._starter.buffers.used == 0)


def test_stored_conversations_are_counted_and_read_on_threads(monkeypatch):
    limit = 4_000_000
    fields = {"server": ServerConfig(port=0, max_buffered_bytes=limit), "max_model_len": 200_000, "num_blocks": 16_000}
    with mock_server(chat_template=TEMPLATE, check_integrity=False, **fields) as server, server.http() as http:
        items = [{"role": "user", "content": "x"}] * 8000
        first = http.post("/v1/responses", json={"input": items, "max_output_tokens": 1}).json()
        again = {"input": "y", "max_output_tokens": 1, "previous_response_id": first["id"]}
        read = recorded(monkeypatch, responses, "chat_messages")
        listed = recorded(monkeypatch, responses, "listed_item")
        assert http.post("/v1/responses/input_tokens", json=again).status_code == 200
        assert http.get(f"/v1/responses/{first['id']}/input_items").status_code == 200
        assert on_pool(read)
        assert on_pool(listed)
        server.wait_for(lambda: server._http._starter.buffers.used == 0)
        buffers = server._http._starter.buffers
        buffers.take_anyway(limit - 500_000)
        for refused in (
            http.post("/v1/responses", json=again),
            http.get(f"/v1/responses/{first['id']}/input_items"),
        ):
            assert (refused.status_code, error_of(refused)["code"]) == (503, "buffers_full")
        buffers.give_back(limit - 500_000)


def test_only_the_output_of_stored_responses_is_read():
    items = responses._items([stored(b'{"tools": [{"a": [1, 2]}], "output": [{"type": "message"}]}')])
    assert items == [{"role": "user"}, {"type": "message"}]


def stored(body: bytes) -> responses.StoredResponse:
    return responses.StoredResponse(id="resp_1", body=body, input=b'[{"role": "user"}]')


def test_tokens_of_prompts_longer_than_the_context_are_counted():
    text = "word " * 1000
    with mock_server(chat_template=TEMPLATE, max_model_len=256) as server, server.http() as http:
        counts = [
            http.post("/v1/responses/input_tokens", json={"input": text}),
            http.post("/v1/messages/count_tokens", json={"messages": [{"role": "user", "content": text}]}),
        ]
        assert [answer.status_code for answer in counts] == [200, 200]
        assert all(len(text) < answer.json()["input_tokens"] < len(text) + 100 for answer in counts)
        assert http.post("/v1/responses", json={"input": text}).status_code == 400


def test_small_bodies_pass_when_the_buffers_are_full():
    limit = 2_000_000
    with mock_server(server=ServerConfig(port=0, max_buffered_bytes=limit)) as server, server.http() as http:
        buffers = server._http._starter.buffers
        buffers.take_anyway(limit)
        assert http.post("/tokenize", json={"prompt": "small"}).status_code == 200
        large = http.post("/tokenize", json={"prompt": "x" * 70_000})
        many = http.post("/detokenize", json={"tokens": [1] * 10_000})
        assert [error_of(answer)["code"] for answer in (large, many)] == ["buffers_full"] * 2
        buffers.give_back(limit)
        server.wait_for(lambda: buffers.used == 0)


def test_structural_tags_of_a_request_are_read_up_to_their_limit():
    form = {"type": "structural_tag", "structures": [{"begin": "<a>"}] * 5000, "triggers": ["<"] * 5000}
    with mock_server() as server, server.http() as http:
        refused = http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}], "response_format": form}
        )
    assert refused.status_code == 400
    assert str(MAX_TAGS) in error_of(refused)["message"]
    assert error_of(refused)["param"] == "response_format"
