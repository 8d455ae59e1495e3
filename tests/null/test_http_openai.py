"""The official client over a real socket: completions and chats, streamed and not, against the mock engine."""

from __future__ import annotations

import codecs
import json

import openai
import pytest
from http_fixtures import SENTENCE, MockServer, error_of, spoken

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server():
    with MockServer() as server:
        yield server


def expected(prompt_len: int, num_tokens: int, **marks) -> str:
    data = (SENTENCE.encode() * 20)[prompt_len : prompt_len + num_tokens]
    return text_of(data)


def text_of(data: bytes) -> str:
    """Broken bytes replaced, but for a character that the end cut off: that one is left out."""
    return codecs.utf_8_decode(data, "replace", False)[0]


def chat_len(messages=MESSAGES) -> int:
    """Prompt tokens: the two markers are one token each."""
    total = 0
    for message in messages:
        total += 2 + len(f"{message['role']}\n{message['content']}\n".encode())
    return total + 1 + len("assistant\n")


def test_completion(server):
    answer = server.openai().completions.create(model="mock", prompt="abc", max_tokens=20)
    assert answer.object == "text_completion"
    assert answer.model == "mock"
    assert answer.choices[0].text == expected(3, 20)
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 20, 23)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer._request_id == answer.id


def test_completion_defaults_to_sixteen_tokens_and_to_the_first_name(server):
    with server.http() as http:
        answer = http.post("/v1/completions", json={"prompt": "abc", "max_tokens": None}).json()
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["model"] == "mock"


def test_default_tokens_shrink_to_the_room_left(server):
    with server.http() as http:
        answer = http.post("/v1/completions", json={"prompt": "a" * 2040}).json()
    assert answer["usage"]["completion_tokens"] == 8


def test_completion_stream_equals_answer(server):
    client = server.openai()
    fields = {
        "model": "mock",
        "prompt": ["abc", [1, 2, 3, 4]],
        "max_tokens": 30,
        "n": 2,
        "logprobs": 3,
        "echo": True,
        "stop": ["laz"],
    }
    whole = client.completions.create(**fields)
    chunks = list(client.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert "".join(one.text for one in mine) == choice.text
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice.finish_reason]
        for column in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            folded = [value for one in mine if one.logprobs for value in getattr(one.logprobs, column)]
            assert folded == getattr(choice.logprobs, column)


def test_echo_and_logprobs_describe_the_whole_text(server):
    answer = server.openai().completions.create(model="mock", prompt="abcd", max_tokens=3, echo=True, logprobs=2)
    choice = answer.choices[0]
    assert choice.text == "abcd" + expected(4, 3)
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.tokens[:4] == list("abcd")
    assert choice.logprobs.text_offset[:5] == [0, 1, 2, 3, 4]
    assert len(choice.logprobs.tokens) == 7
    assert all(len(top) <= 3 for top in choice.logprobs.top_logprobs[1:])


def test_echo_of_nothing_new_scores_the_prompt(server):
    answer = server.openai().completions.create(model="mock", prompt="abcd", max_tokens=0, echo=True, logprobs=0)
    assert answer.choices[0].text == "abcd"
    assert answer.choices[0].logprobs.tokens == list("abcd")
    assert answer.usage.completion_tokens == 0


def test_several_prompts_and_n_are_numbered_prompt_by_prompt(server):
    answer = server.openai().completions.create(model="mock", prompt=["a", "bcdef"], n=3, max_tokens=4)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == [expected(1, 4)] * 3 + [expected(5, 4)] * 3
    assert answer.usage.prompt_tokens == 6
    assert answer.usage.completion_tokens == 24


def test_chat(server):
    answer = server.openai().chat.completions.create(model="alias", messages=MESSAGES, max_completion_tokens=25)
    assert answer.object == "chat.completion"
    assert answer.model == "alias"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == expected(chat_len(), 25)
    assert answer.usage.prompt_tokens == chat_len()


def test_chat_stream(server):
    chunks = list(
        server.openai().chat.completions.create(
            model="mock", messages=MESSAGES, max_tokens=25, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected(chat_len(), 25)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 25


def test_chat_stream_equals_answer_with_logprobs(server):
    client = server.openai()
    fields = {
        "model": "mock",
        "messages": MESSAGES,
        "max_tokens": 40,
        "n": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "stop": "brown",
    }
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True))
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert [one.finish_reason for one in mine if one.finish_reason] == [choice.finish_reason]
        assert [entry for one in mine if one.logprobs for entry in one.logprobs.content] == choice.logprobs.content
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens // 3


def test_continue_final_message(server):
    messages = [*MESSAGES, {"role": "assistant", "content": "Once upon"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    answer = server.openai().chat.completions.create(model="mock", messages=messages, max_tokens=5, extra_body=extra)
    with server.http() as http:
        ids = http.post("/tokenize", json={"messages": messages, **extra}).json()["tokens"]
    assert bytes(ids[-9:]) == b"Once upon"
    assert answer.usage.prompt_tokens == len(ids)


def test_stop_string_ends_the_engine_request_too(server):
    answer = server.openai().completions.create(model="mock", prompt="abc", max_tokens=1000, stop=["fox", "quick"])
    assert answer.choices[0].text == expected(3, 1000).partition("quick")[0]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == "quick"
    with server.http() as http:
        included = http.post(
            "/v1/completions",
            json={"prompt": "abc", "max_tokens": 1000, "stop": "quick", "include_stop_str_in_output": True},
        ).json()
    assert included["choices"][0]["text"].endswith("quick")
    assert included["usage"]["completion_tokens"] == answer.usage.completion_tokens
    server.wait_idle()


def test_end_of_sequence_and_ignore_eos():
    with MockServer(token_of=spoken(ends_at=10)) as server:
        client = server.openai()
        answer = client.completions.create(model="mock", prompt="abc", max_tokens=30)
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].stop_reason is None
        assert answer.choices[0].text == expected(3, 7)
        assert answer.usage.completion_tokens == 8
        on = client.completions.create(model="mock", prompt="abc", max_tokens=30, extra_body={"ignore_eos": True})
        assert on.choices[0].finish_reason == "length"
        assert on.usage.completion_tokens == 30


def test_stop_token_id_is_the_stop_reason(server):
    answer = server.openai().completions.create(
        model="mock", prompt="abc", max_tokens=200, extra_body={"stop_token_ids": [ord("Q"), ord("q")]}
    )
    assert answer.choices[0].stop_reason == ord("q")
    assert answer.choices[0].text == expected(3, 200).partition("q")[0]


def test_cached_prompt_tokens_are_counted(server):
    prompt = "A prompt that fills more than one block of sixteen tokens."
    client = server.openai()
    first = client.completions.create(model="mock", prompt=prompt, max_tokens=2, extra_body={"cache_salt": "one"})
    again = client.completions.create(model="mock", prompt=prompt, max_tokens=2, extra_body={"cache_salt": "one"})
    other = client.completions.create(model="mock", prompt=prompt, max_tokens=2, extra_body={"cache_salt": "two"})
    cached = [one.usage.prompt_tokens_details.cached_tokens for one in (first, again, other)]
    assert cached == [0, 48, 0]


def test_prompt_logprobs_and_token_ids(server):
    body = {"prompt": "abc", "max_tokens": 2, "prompt_logprobs": 1, "return_token_ids": True}
    with server.http() as http:
        choice = http.post("/v1/completions", json=body).json()["choices"][0]
        chat = http.post(
            "/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2, "prompt_logprobs": 0}
        ).json()
        streamed = http.post(
            "/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 2, "prompt_logprobs": 0, "stream": True}
        )
    assert choice["prompt_logprobs"][0] is None
    assert choice["prompt_logprobs"][1][str(ord("b"))]["decoded_token"] == "b"
    assert len(choice["prompt_logprobs"]) == 3
    assert choice["prompt_token_ids"] == list(b"abc")
    assert text_of(bytes(choice["token_ids"])) == choice["text"]
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    chunks = [json.loads(line[6:]) for line in streamed.text.split("\n\n") if line.startswith("data: {")]
    scores = [entry for chunk in chunks for entry in chunk["choices"][0].get("prompt_logprobs", ())]
    assert scores == chat["prompt_logprobs"]


def test_allowed_tokens_and_token_names(server):
    body = {
        "prompt": "abc", "max_tokens": 4, "allowed_token_ids": [65], "logprobs": 1, "return_tokens_as_token_ids": True,
    }  # fmt: skip
    with server.http() as http:
        choice = http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == "AAAA"
    assert choice["logprobs"]["tokens"] == ["token_id:65"] * 4


def test_models(server):
    client = server.openai()
    assert [model.id for model in client.models.list()] == ["mock", "alias"]
    assert client.models.retrieve("alias").id == "alias"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("other")
    assert error.value.code == "model_not_found"


def test_errors_reach_the_client_typed(server):
    client = server.openai()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="mock", messages=MESSAGES, temperature=-1)
    assert error.value.param == "temperature"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("completions", {"prompt": "a", "best_of": 2}, "best_of"),
        ("completions", {"prompt": "a", "n": 129}, "n"),
        ("completions", {"prompt": "a", "n": 0}, "n"),
        ("completions", {"prompt": "a", "n": 10**30}, "n"),
        ("completions", {"prompt": "a", "logprobs": 21}, "logprobs"),
        ("completions", {"prompt": "a", "max_tokens": "many"}, "max_tokens"),
        ("completions", {"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ("completions", {"prompt": "a", "max_tokens": 1e9}, "max_tokens"),
        ("completions", {"prompt": "a", "top_p": 0}, "top_p"),
        ("completions", {"prompt": "a", "top_k": -2}, "top_k"),
        ("completions", {"prompt": "a", "min_p": 1.5}, "min_p"),
        ("completions", {"prompt": "a", "typical_p": 0}, "typical_p"),
        ("completions", {"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
        ("completions", {"prompt": "a", "presence_penalty": 3}, "presence_penalty"),
        ("completions", {"prompt": "a", "frequency_penalty": -3}, "frequency_penalty"),
        ("completions", {"prompt": "a", "min_tokens": 50, "max_tokens": 20}, "min_tokens"),
        ("completions", {"prompt": "a", "seed": 2**70}, "seed"),
        ("completions", {"prompt": "a", "seed": 1.5}, "seed"),
        ("completions", {"prompt": "a", "stop": [""]}, "stop"),
        ("completions", {"prompt": "a", "stop": ["x"] * 17}, "stop"),
        ("completions", {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ("completions", {"prompt": "a", "logit_bias": {"65": 101}}, "logit_bias"),
        ("completions", {"prompt": "a", "logit_bias": {"9999999": 1}}, "logit_bias"),
        ("completions", {"prompt": "a", "allowed_token_ids": [99999]}, "allowed_token_ids"),
        ("completions", {"prompt": "a", "bad_words": [""]}, "bad_words"),
        ("completions", {"prompt": "a", "priority": 2**40}, "priority"),
        ("completions", {"prompt": "a", "response_format": {"type": "json_objekt"}}, "response_format"),
        ("completions", {"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ""}, "prompt"),
        ("completions", {"prompt": [[]]}, "prompt"),
        ("completions", {"prompt": ["a", 1]}, "prompt"),
        ("completions", {"prompt": [-1]}, "prompt"),
        ("completions", {"prompt": [10**30]}, "prompt"),
        ("completions", {"prompt": [5000]}, "prompt"),
        ("completions", {"prompt": ["a"] * 1025}, "prompt"),
        ("completions", {}, "prompt"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {}, "messages"),
        ("chat/completions", {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools"),
        ("chat/completions", {"messages": MESSAGES, "tool_choice": "required"}, "tool_choice"),
        ("chat/completions", {"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"messages": MESSAGES, "top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ("chat/completions", {"messages": MESSAGES, "modalities": ["audio"]}, "modalities"),
        ("chat/completions", {"messages": MESSAGES, "chat_template": "x"}, "chat_template"),
        ("chat/completions", {"messages": MESSAGES, "chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs"),
        ("chat/completions", {"messages": MESSAGES, "max_completion_tokens": -5}, "max_completion_tokens"),
        (
            "chat/completions",
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
    ],
)  # fmt: skip
def test_wrong_fields_are_400_and_named(server, path, body, param):
    with server.http() as http:
        response = http.post(f"/v1/{path}", content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"].partition("[")[0] == param
    assert error["type"] == "invalid_request_error"


def test_too_long_prompts_name_both_lengths(server):
    with server.http() as http:
        error = error_of(http.post("/v1/completions", json={"prompt": "a" * 3000}))
        more = error_of(http.post("/v1/completions", json={"prompt": "a" * 2000, "max_tokens": 100}))
        threaded = error_of(http.post("/v1/completions", json={"prompt": "a" * 20_000}))
    assert "20000" in threaded["message"]
    assert "3000" in error["message"]
    assert "2048" in error["message"]
    assert error["code"] == "context_length_exceeded"
    assert "2000" in more["message"]
    assert "2048" in more["message"]
    assert more["param"] == "max_tokens"


def test_unknown_fields_warn(server):
    with server.http() as http:
        response = http.post("/v1/completions", json={"prompt": "a", "temprature": 1, "x\r\ny\u00e9": 2})
        nested = http.post(
            "/v1/completions", json={"prompt": "a", "stream": True, "stream_options": {"include_usages": True}}
        )
    assert response.status_code == 200
    assert response.headers["penstock-warning"] == "unknown fields ignored: temprature, x??y?"
    assert nested.headers["penstock-warning"] == "unknown fields ignored: stream_options.include_usages"


def test_model_without_template_says_so():
    with MockServer(template=False) as server, pytest.raises(openai.BadRequestError) as error:
        server.openai().chat.completions.create(model="mock", messages=MESSAGES)
    assert "chat template" in str(error.value)


def test_tokenize_and_detokenize(server):
    with server.http() as http:
        answer = http.post("/tokenize", json={"prompt": "héllo", "return_token_strs": True}).json()
        assert answer["tokens"] == list("héllo".encode())
        assert answer["count"] == 6
        assert answer["max_model_len"] == 2048
        assert len(answer["token_strs"]) == 6
        assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "héllo"}
        assert error_of(http.post("/detokenize", json={"tokens": [100000]}))["param"] == "tokens"
        assert error_of(http.post("/detokenize", json={"tokens": [-1]}))["param"] == "tokens"
        assert error_of(http.post("/tokenize", json={}))["param"] == "prompt"
        assert http.post("/tokenize", json={"messages": MESSAGES}).json()["count"] == chat_len()
