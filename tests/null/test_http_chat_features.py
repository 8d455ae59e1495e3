"""What chats take besides text: prefill, developer messages, parts, template variables, names of older servers."""

from __future__ import annotations

import pytest
from http_fixtures import CHATML, error_of, mock_server
from tool_fixtures import CALL, TEMPLATE, USER, WEATHER, says

from penstock.frontend.openai.removed import CHAT_REMOVED, COMPLETION_REMOVED
from penstock.mock.tokenizer import ByteTokenizer

VARIABLES = CHATML.replace(
    "{% for m", "{% if tone is defined %}<|im_start|>tone {{ tone }}<|im_end|>\n{% endif %}{% for m"
)


def prompt_of(server, **fields):
    """The text that the model is given."""
    with server.http() as http:
        ids = http.post("/tokenize", json={"add_special_tokens": False, **fields}).json()["tokens"]
    return ByteTokenizer().decode(ids, skip_special_tokens=False)


def test_a_prefill_is_gone_on_with():
    messages = [USER, {"role": "assistant", "content": "It is"}]
    kwargs = {"add_generation_prompt": False, "continue_final_message": True}
    with mock_server(chat_template=TEMPLATE, token_of=says(" sunny.", tools=(), messages=messages, **kwargs)) as server:
        client = server.openai()
        fields = {"model": "mock", "messages": messages, "extra_body": {"continue_final_message": True}}
        choice = client.chat.completions.create(**fields).choices[0]
        assert (choice.message.content, choice.message.role) == (" sunny.", "assistant")
        chunks = list(client.chat.completions.create(**fields, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == " sunny."


def test_developers_speak_as_the_template_knows_them():
    messages = [{"role": "developer", "content": "Be brief."}, USER]
    with mock_server() as server:
        assert prompt_of(server, messages=messages).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    with mock_server(chat_template="{# developer #}" + CHATML) as server:
        assert prompt_of(server, messages=messages).startswith("<|im_start|>developer\nBe brief.<|im_end|>")


def test_parts_are_texts_of_one_message():
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]
    with mock_server() as server, server.http() as http:
        assert "<|im_start|>user\nOne\nTwo<|im_end|>" in prompt_of(
            server, messages=[{"role": "user", "content": parts}]
        )
        image = {"type": "image_url", "image_url": {"url": "data:"}}
        body = {"messages": [{"role": "user", "content": [*parts, image]}]}
        error = error_of(http.post("/v1/chat/completions", json=body))
        assert error["param"] == "messages[0].content[2]"
        assert "text only" in error["message"]


def test_variables_reach_the_template():
    with mock_server(chat_template=VARIABLES) as server, server.http() as http:
        kwargs = {"chat_template_kwargs": {"tone": "dry"}}
        assert prompt_of(server, messages=[USER], **kwargs).startswith("<|im_start|>tone dry<|im_end|>")
        usage = [
            http.post("/v1/chat/completions", json={"messages": [USER], "max_tokens": 1, **extra}).json()["usage"]
            for extra in ({}, kwargs)
        ]
        assert usage[1]["prompt_tokens"] > usage[0]["prompt_tokens"]


def test_reasoning_is_counted():
    text = "Easy.\n</think>\n\nSunny."
    with mock_server(chat_template=TEMPLATE, token_of=says(text, tools=(), enable_thinking=True)) as server:
        fields = {"model": "mock", "messages": [USER], "reasoning_effort": "high"}
        usage = server.openai().chat.completions.create(**fields).usage
        assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_a_call_may_only_name_the_tools_that_are_allowed():
    other = {"type": "function", "function": {**WEATHER["function"], "name": "other"}}
    with mock_server(chat_template=TEMPLATE, token_of=says(CALL, tools=(WEATHER, other))) as server:
        client = server.openai()
        for name, finish in (("weather", "tool_calls"), ("other", "stop")):
            allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": name}}]}
            choice = {"type": "allowed_tools", "allowed_tools": allowed}
            fields = {"model": "mock", "messages": [USER], "tools": [WEATHER, other], "tool_choice": choice}
            assert client.chat.completions.create(**fields).choices[0].finish_reason == finish


@pytest.mark.parametrize("allowed", [None, {}, {"mode": "auto", "tools": []}, {"mode": "x", "tools": [{}]}])
def test_allowed_tools_need_a_mode_and_tools(allowed):
    with mock_server(chat_template=TEMPLATE) as server, server.http() as http:
        choice = {"type": "allowed_tools", "allowed_tools": allowed}
        body = {"messages": [USER], "tools": [WEATHER], "tool_choice": choice}
        error = error_of(http.post("/v1/chat/completions", json=body))
        assert (error["param"], "mode" in error["message"]) == ("tool_choice", True)


ROUTES = {
    "/v1/chat/completions": ({"messages": [USER], "max_tokens": 1}, CHAT_REMOVED),
    "/v1/completions": ({"prompt": "a", "max_tokens": 1}, COMPLETION_REMOVED),
}


@pytest.mark.parametrize("path", ROUTES)
def test_names_of_older_servers_answer_with_an_instruction(path):
    body, table = ROUTES[path]
    given = {"functions": [{"name": "f"}], "function_call": {"name": "f"}}
    with mock_server() as server, server.http() as http:
        for name, instruction in table.items():
            answer = http.post(path, json={**body, name: given.get(name, 1)})
            assert answer.status_code == 400, name
            error = error_of(answer)
            assert (error["param"], error["code"]) == (name, "removed_field")
            assert instruction in error["message"]
            if name not in given:
                silent = http.post(path, json={**body, name: None})
                assert (silent.status_code, "penstock-warning" in silent.headers) == (200, False)


def test_two_limits_that_differ_are_refused():
    with mock_server() as server, server.http() as http:
        body = {"messages": [USER], "max_tokens": 1}
        assert http.post("/v1/chat/completions", json={**body, "max_completion_tokens": 1}).status_code == 200
        error = error_of(http.post("/v1/chat/completions", json={**body, "max_completion_tokens": 2}))
        assert error["param"] == "max_tokens"
        assert "max_completion_tokens alone" in error["message"]
