"""The Messages API through a whole server, read by its vendor's client: streams and whole messages are one."""

from __future__ import annotations

import contextlib
import json

import anthropic
import httpx2
import pytest
from http_fixtures import mock_server
from tool_fixtures import CALL, OTHER, TEMPLATE, USER, WEATHER, says

from penstock.config.sections import ServerConfig
from penstock.mock.faults import MockFaults

FUNCTION = WEATHER["function"]
TOOL = {
    "name": FUNCTION["name"],
    "description": FUNCTION["description"],
    "input_schema": FUNCTION["parameters"],
}
SHOWN = ({"type": "function", "function": {key: FUNCTION[key] for key in ("name", "description", "parameters")}},)
BEFORE = 'Well.\n<tool_call>\n{"name": "weather", "arguments": '
THINKING = {"type": "enabled", "budget_tokens": 1024}


def serve(text, **says_fields):
    fields = {"tools": SHOWN, "enable_thinking": False, **says_fields}
    return mock_server(chat_template=TEMPLATE, token_of=says(text, **fields))


@contextlib.contextmanager
def client_of(server, **keys):
    keys = keys or {"api_key": "none"}
    with httpx2.Client(verify=False) as plain:
        yield anthropic.Anthropic(base_url=server.url, max_retries=0, timeout=60, http_client=plain, **keys)


def plain(message):
    dumped = message.model_dump()
    dumped.pop("id")
    for block in dumped["content"]:
        block.pop("id", None)
        block.pop("parsed_output", None)
    usage = dumped["usage"]  # the second request finds its prompt in the cache
    usage["input_tokens"] += usage.pop("cache_read_input_tokens") or 0
    return dumped


def check_order(events):
    """The rules of the protocol: one block at a time, numbered, between one start and one end of the message."""
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    index, is_open = -1, False
    for event in events[1:-2]:
        if event.type == "content_block_start":
            assert not is_open
            index, is_open = index + 1, True
        elif event.type == "content_block_stop":
            is_open = False
        else:
            assert event.type == "content_block_delta"
            assert is_open
        assert event.index == index
    assert not is_open


def both(server, **fields):
    """The message, whole and put together from its stream by the client; they must agree."""
    sampling = {"temperature": 0}  # which the newest client no longer has a name for
    request = {"model": "mock", "max_tokens": 500, "messages": [USER], "extra_body": sampling, **fields}
    with client_of(server) as client:
        whole = client.messages.create(**request)
        check_order(list(client.messages.create(**request, stream=True)))
        with client.messages.stream(**request) as stream:
            streamed = stream.get_final_message()
    assert plain(whole) == plain(streamed)
    return whole


def test_text():
    with serve("Sunny.", tools=()) as server:
        message = both(server)
        (block,) = message.content
        assert (block.type, block.text) == ("text", "Sunny.")
        assert (message.type, message.role, message.model) == ("message", "assistant", "mock")
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        assert message.usage.output_tokens == len("Sunny.") + 1
        with client_of(server) as client:
            assert client.messages.create(model="alias", max_tokens=9, messages=[USER])._request_id.startswith("msg_")


def test_tokens_are_counted_as_they_are_used():
    fields = {"messages": [USER], "system": "Be brief.", "tools": [TOOL]}
    messages = [{"role": "system", "content": "Be brief."}, USER]
    with serve("Sunny.", messages=messages) as server, client_of(server) as client:
        usage = both(server, **fields).usage
        count = client.messages.count_tokens(model="mock", **fields).input_tokens
        assert count == usage.input_tokens + usage.cache_read_input_tokens


def test_calls_are_blocks():
    with serve(f"Let me see.\n{CALL}\n{OTHER}") as server:
        message = both(server, tools=[TOOL])
        text, first, second = message.content
        assert text.text == "Let me see."
        assert (first.type, first.name, first.input) == ("tool_use", "weather", {"city": "Köln 🦊"})
        assert second.input == {"city": "Rom"}
        assert first.id != second.id
        assert message.stop_reason == "tool_use"
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        assert len(both(server, tools=[TOOL], tool_choice=choice).content) == 2


def test_a_call_can_be_asked_for():
    with serve(CALL) as server:
        for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
            (block,) = both(server, tools=[TOOL], tool_choice=choice).content
            assert block.type == "tool_use"


def test_a_schema_holds():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    config = {"format": {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}}
    with serve('{"a": 1}', tools=()) as server:
        assert json.loads(both(server, output_config=config).content[0].text) == {"a": 1}


def test_no_tools_are_shown_where_none_may_be_called():
    with serve(CALL, tools=()) as server:
        (block,) = both(server, tools=[TOOL], tool_choice={"type": "none"}).content
        assert block.text == CALL


def test_thinking_is_a_block_when_it_is_asked_for():
    text = f"Easy.\n</think>\n\nOne moment.\n{CALL}"
    with serve(text, enable_thinking=True) as server:
        message = both(server, tools=[TOOL], thinking=THINKING)
        thinking, said, call = message.content
        assert (thinking.type, thinking.thinking) == ("thinking", "Easy.")
        assert thinking.signature
        assert (said.text, call.input) == ("One moment.", {"city": "Köln 🦊"})
        assert 0 < message.usage.output_tokens_details.thinking_tokens < message.usage.output_tokens
        hidden = both(server, tools=[TOOL], thinking={**THINKING, "display": "omitted"})
        assert [block.type for block in hidden.content] == ["text", "tool_use"]


@pytest.mark.parametrize("thinking", [{}, {"thinking": {"type": "disabled"}}])
def test_clients_that_did_not_ask_for_thinking_get_none(thinking):
    """They count on text first. This template opens thinking whatever it is told."""
    template = TEMPLATE.replace("enable_thinking is defined and enable_thinking", "true")
    token_of = says("Hm.\n</think>\n\nYes.", tools=(), enable_thinking=True)
    with mock_server(chat_template=template, token_of=token_of) as server:
        (block,) = both(server, **thinking).content
        assert block.text == "Yes."


def test_adaptive_leaves_thinking_to_the_model():
    token_of = says("<think>\nHm.\n</think>\n\nYes.", tools=())
    with mock_server(chat_template=TEMPLATE, token_of=token_of) as server:
        thinking, text = both(server, thinking={"type": "adaptive"}).content
        assert (thinking.thinking, text.text) == ("Hm.", "Yes.")


@pytest.mark.parametrize(
    ("begun", "given"), [('{"ci', {}), ('{"city": "K', {}), ('{"city": "Köln 🦊"', {"city": "Köln 🦊"})]
)
def test_what_is_cut_off_says_what_is_certain(begun, given):
    with serve("Well.\n" + CALL) as server:
        message = both(server, tools=[TOOL], max_tokens=len((BEFORE + begun).encode()))
        assert message.stop_reason == "max_tokens"
        assert message.content[0].text == "Well."
        assert message.content[1].input == given


def test_stop_sequences():
    with serve("One. Two. Three.", tools=()) as server:
        message = both(server, stop_sequences=["Three", " Two"])
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " Two")
        assert message.content[0].text == "One."


def test_more_tokens_than_the_context_has_room_for():
    with mock_server(chat_template=TEMPLATE, max_model_len=256) as server:
        message = both(server, max_tokens=10**6)
        assert message.stop_reason == "model_context_window_exceeded"
        usage = message.usage
        assert usage.input_tokens + usage.cache_read_input_tokens + usage.output_tokens == 256


def test_an_answer_that_says_nothing_is_an_empty_text():
    with serve("", tools=()) as server:
        (block,) = both(server).content
        assert block.text == ""


def test_a_last_message_of_the_assistant_is_gone_on_with():
    messages = [USER, {"role": "assistant", "content": "It is"}]
    kwargs = {"add_generation_prompt": False, "continue_final_message": True}
    with serve(" sunny.", tools=(), messages=messages, **kwargs) as server:
        assert both(server, messages=messages).content[0].text == " sunny."


def test_a_conversation_with_tools_and_thinking_goes_back_in():
    call = {"function": {"name": "weather", "arguments": {"city": "Köln 🦊"}}}
    rendered = [
        {"role": "system", "content": "Be\nbrief."},
        USER,
        {"role": "assistant", "content": "One moment.", "reasoning_content": "Easy.", "tool_calls": [call]},
        {"role": "tool", "content": "Error: no\nstation"},
        {"role": "user", "content": "And now?"},
    ]
    first = says(
        f"Easy.\n</think>\n\nOne moment.\n{CALL}", tools=SHOWN, messages=[rendered[0], USER], enable_thinking=True
    )
    second = says("Cold.", tools=SHOWN, messages=rendered, enable_thinking=True)
    tokens = [first]
    system = [
        {"type": "text", "text": "Be", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "brief."},
    ]
    fields = {"model": "mock", "max_tokens": 300, "system": system, "tools": [TOOL], "thinking": THINKING}
    with (
        mock_server(chat_template=TEMPLATE, token_of=lambda *place: tokens[0](*place)) as server,
        client_of(server) as client,
    ):
        opened = client.messages.create(messages=[USER], **fields)
        tokens[0] = second
        result = {
            "type": "tool_result",
            "tool_use_id": opened.content[-1].id,
            "is_error": True,
            "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "station"}],
        }
        again = [USER, opened.to_param(), {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]}]
        answer = client.messages.create(messages=again, **fields)
    assert [block.type for block in answer.content] == ["thinking"]  # the prompt opened it, and nothing closed it
    assert answer.content[0].thinking == "Cold."


# -- errors and keys -----------------------------------------------------------------------------------------------


def problem_of(response):
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    return body["error"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "text only"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "runs no tools itself"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "any"}}, "needs tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "fly"}}, "'fly'"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "x"}, "container"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        ({"context_management": {"edits": [{"type": "clear_thinking_20251015"}, 1]}}, "context_management"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort must be"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences may hold"),
        ({"temperature": 200}, "temperature"),
        ({"max_tokens_to_sample": 5}, "Use max_tokens"),
        ({"stop": "x"}, "Use stop_sequences"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages has"),
    ],
)
def test_what_would_change_the_answer_is_refused(fields, word):
    with mock_server(chat_template=TEMPLATE) as server, server.http() as http:
        for stream in (False, True):
            body = {"messages": [USER], "max_tokens": 5, "stream": stream, **fields}
            response = http.post("/v1/messages", json=body)
            assert response.status_code == 400, response.text
            error = problem_of(response)
            assert error["type"] == "invalid_request_error"
            assert word in error["message"]


def test_errors_have_the_types_that_the_client_knows():
    with mock_server(chat_template=TEMPLATE, server=ServerConfig(port=0, max_request_bytes=2000)) as server:
        with client_of(server) as client:
            fields = {"max_tokens": 5, "messages": [USER]}
            with pytest.raises(anthropic.NotFoundError) as caught:
                client.messages.create(model="other", **fields)
            assert caught.value.body["error"]["type"] == "not_found_error"
            with pytest.raises(anthropic.APIStatusError) as caught:
                client.messages.create(model="mock", max_tokens=5, messages=[{"role": "user", "content": "x" * 4000}])
            assert caught.value.body["error"]["type"] == "request_too_large"
        with server.http() as http:
            assert problem_of(http.get("/v1/messages"))["type"] == "invalid_request_error"
            assert problem_of(http.post("/v1/messages", content=b"{"))["type"] == "invalid_request_error"
            server.app.admission.drain()
            body = {"messages": [USER], "max_tokens": 5}
            assert problem_of(http.post("/v1/messages", json=body))["type"] == "overloaded_error"


def test_a_failure_in_mid_stream_is_an_error_event():
    faults = MockFaults(failed_steps=frozenset({12}))
    with mock_server(chat_template=TEMPLATE, faults=faults, step_s=0.005) as server, client_of(server) as client:
        stream = client.messages.create(model="mock", max_tokens=200, messages=[USER], stream=True)
        with pytest.raises(anthropic.APIStatusError) as caught:
            list(stream)
        assert caught.value.body["error"]["type"] == "api_error"


def test_keys_in_either_header():
    with mock_server(chat_template=TEMPLATE, server=ServerConfig(port=0, api_key=("secret",))) as server:
        fields = {"model": "mock", "max_tokens": 5, "messages": [USER]}
        for keys in ({"api_key": "secret"}, {"auth_token": "secret"}):
            with client_of(server, **keys) as client:
                assert client.messages.create(**fields).usage.output_tokens == 5
        for keys in ({"api_key": "guess"}, {"auth_token": "guess"}):
            with client_of(server, **keys) as client, pytest.raises(anthropic.AuthenticationError) as caught:
                client.messages.create(**fields)
            assert caught.value.body["error"]["type"] == "authentication_error"
        with server.http(**{"x-api-key": "secret"}) as http:
            assert http.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"thinking": THINKING}, "budget_tokens"), ({"nonsense": 1}, "nonsense")],
)
def test_what_changes_nothing_is_said(fields, word):
    with mock_server(chat_template=TEMPLATE) as server, server.http() as http:
        response = http.post("/v1/messages", json={"messages": [USER], "max_tokens": 1, **fields})
        assert response.status_code == 200, response.text
        assert word in response.headers["penstock-warning"]


def test_edits_that_take_nothing_away_are_taken():
    edits = [{"type": "clear_thinking_20251015", "keep": "all"}]
    with serve("Yes.", tools=()) as server:
        for management in ({"edits": edits}, {"edits": []}, {}):
            extra = {"context_management": management}
            assert both(server, extra_body=extra).content[0].text == "Yes."


def test_arguments_come_through_as_they_were_written():
    big = 10**30
    call = f'<tool_call>\n{{"name": "weather", "arguments": {{"city": {big}}}}}\n</tool_call>'
    with serve(call) as server, server.http() as http:
        body = {"messages": [USER], "max_tokens": 300, "tools": [TOOL]}
        answer = json.loads(http.post("/v1/messages", json=body).text)
        assert answer["content"][0]["input"] == {"city": big}
