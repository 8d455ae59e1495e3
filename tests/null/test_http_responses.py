"""The Responses API through a whole server, read by its vendor's client: streams and whole responses are one."""

from __future__ import annotations

import json

import openai
import pytest
from http_fixtures import error_of, mock_server
from tool_fixtures import CALL, OTHER, TEMPLATE, USER, WEATHER, says

from penstock.config.sections import ServerConfig
from penstock.frontend.chat.template import ChatTemplate

TOOL = {"type": "function", **WEATHER["function"], "strict": None}
INPUT = USER["content"]
MADE = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
BEGUN = 'Well.\n<tool_call>\n{"name": "weather", "arguments": {"city": "K'


def serve(text, *, server=None, **says_fields):
    fields = {} if server is None else {"server": server}
    return mock_server(chat_template=TEMPLATE, token_of=says(text, **says_fields), **fields)


def plain(value):
    """Without what no two responses share."""
    if isinstance(value, dict):
        hidden = ("id", "call_id", "created_at", "completed_at")
        return {name: plain(item) for name, item in value.items() if name not in hidden}
    return [plain(item) for item in value] if isinstance(value, list) else value


def rebuilt(events):
    """Output items from the events that have pieces alone, with every rule of the protocol checked on the way."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert {events[0].response.status, events[1].response.status} == {"in_progress"}
    items, texts = [], []
    for event in events[2:-1]:
        if event.type == "response.output_item.added":
            assert event.output_index == len(items)
            items.append(event.item)
            texts.append("")
            continue
        assert event.output_index == len(items) - 1
        if event.type.endswith(".delta"):
            texts[-1] += event.delta
        elif event.type == "response.output_item.done":
            assert event.item.id == items[-1].id
            items[-1] = event.item
        elif event.type in ("response.output_text.done", "response.reasoning_text.done"):
            assert event.text == texts[-1]
        elif event.type == "response.function_call_arguments.done":
            assert event.arguments == texts[-1]
        if event.type != "response.output_item.done":
            assert event.item_id == items[-1].id
    final = events[-1].response
    assert [item.id for item in final.output] == [item.id for item in items]
    for item, text in zip(final.output, texts, strict=True):
        assert text == (item.arguments if item.type == "function_call" else item.content[0].text)
    return final


def both(server, **fields):
    """The response, whole and put together from its stream by the rules of the API; they must agree."""
    client = server.openai()
    request = {"model": "mock", "input": INPUT, "temperature": 0, "store": False, **fields}
    whole = client.responses.create(**request)
    events = list(client.responses.create(**request, stream=True))
    assert events[-1].type == f"response.{whole.status}"
    streamed = rebuilt(events)
    one, other = plain(streamed.model_dump()), plain(whole.model_dump())
    for usage in (one["usage"], other["usage"]):
        usage.pop("input_tokens_details")  # the second request finds its prompt in the cache
    assert one == other
    return whole


def test_text():
    with serve("Sunny.", tools=()) as server:
        response = both(server)
        assert (response.status, response.output_text, response.object) == ("completed", "Sunny.", "response")
        (message,) = response.output
        assert (message.role, message.status) == ("assistant", "completed")
        prompt = ChatTemplate(TEMPLATE, {}).render([USER])
        usage = response.usage
        assert usage.input_tokens == server.openai().responses.input_tokens.count(input=INPUT).input_tokens
        assert usage.input_tokens <= len(prompt.encode())
        assert usage.output_tokens == len("Sunny.") + 1
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert (response.temperature, response.tool_choice, response.tools) == (0.0, "auto", [])


def test_instructions_come_first_and_are_not_part_of_the_conversation():
    messages = [{"role": "system", "content": "Be brief."}, USER]
    with serve("Sunny.", tools=(), messages=messages) as server:
        assert both(server, instructions="Be brief.").output_text == "Sunny."


def test_calls_are_items():
    with serve(f"Let me see.\n{CALL}\n{OTHER}") as server:
        response = both(server, tools=[TOOL])
        message, first, second = response.output
        assert message.content[0].text == "Let me see."
        assert (first.type, first.name, json.loads(first.arguments)) == (
            "function_call",
            "weather",
            {"city": "Köln 🦊"},
        )
        assert (response.status, first.status) == ("completed", "completed")
        assert first.call_id != second.call_id
        single = both(server, tools=[TOOL], parallel_tool_calls=False)
        assert [item.type for item in single.output] == ["message", "function_call"]


def test_a_call_can_be_asked_for():
    with serve(CALL) as server:
        for choice in ("required", {"type": "function", "name": "weather"}):
            response = both(server, tools=[TOOL], tool_choice=choice)
            assert [item.type for item in response.output] == ["function_call"]
            assert response.to_dict()["tool_choice"] == choice


def test_reasoning_is_an_item():
    text = "Easy.\n</think>\n\nSunny."
    with serve(text, tools=(), enable_thinking=True) as server:
        response = both(server, reasoning={"effort": "high"})
        reasoning, message = response.output
        assert (reasoning.type, reasoning.content[0].text, reasoning.summary) == ("reasoning", "Easy.", [])
        assert message.content[0].text == "Sunny."
        assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens
        assert response.reasoning.effort == "high"


@pytest.mark.parametrize(("cut", "last"), [(3, "message"), (len(BEGUN.encode()), "function_call")])
def test_what_is_cut_off_is_incomplete(cut, last):
    with serve("Well.\n" + CALL) as server:
        response = both(server, tools=[TOOL], max_output_tokens=cut)
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert (response.output[-1].type, response.output[-1].status) == (last, "incomplete")


def test_an_answer_that_says_nothing_is_an_empty_message():
    with serve("", tools=()) as server:
        (message,) = both(server).output
        assert message.content[0].text == ""


def test_the_clients_own_stream_helper():
    with serve(f"Easy.\n</think>\n\nOne moment.\n{CALL}", enable_thinking=True) as server:
        fields = {"model": "mock", "input": INPUT, "tools": [TOOL], "reasoning": {"effort": "low"}}
        with server.openai().responses.stream(**fields) as stream:
            deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        assert "".join(deltas) == final.output_text == "One moment."
        assert final.output[-1].parsed_arguments is None  # nobody asked for strict arguments
        assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]


def test_logprobs_are_those_of_the_text():
    closed = {"enable_thinking": False}
    with serve("Yes.", tools=(), **closed) as server:
        fields = {
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
            "extra_body": {"chat_template_kwargs": closed},
        }
        text = both(server, **fields).output[0].content[0]
        assert "".join(bytes(one.bytes).decode() for one in text.logprobs).startswith("Yes.")
        assert {len(one.top_logprobs) for one in text.logprobs} <= {1, 2}
        with pytest.raises(openai.BadRequestError, match="reasoning or calls"):
            both(server, include=["message.output_text.logprobs"])


def test_a_schema_holds():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "it", "schema": schema, "strict": True}
    with serve('{"a": 1}', tools=(), enable_thinking=False) as server, server.http() as http:
        fields = {"text": {"format": form}, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
        response = both(server, **fields)
        assert json.loads(response.output_text) == {"a": 1}
        assert response.text.format.to_dict()["schema"] == schema
        answer = http.post("/v1/responses", json={"input": INPUT, "text": {"format": {**form, "schema": None}}})
        error = error_of(answer)
        assert answer.status_code == 400
        assert "text.format" in error["message"]
        assert error["param"] == "text.format"


# -- conversations -------------------------------------------------------------------------------------------------


def test_a_conversation_goes_on_from_a_stored_response():
    """The prompt of the second request is the whole conversation: the mock answers at its end and nowhere else."""
    first = f"Easy.\n</think>\n\nOne moment.\n{CALL}"
    call = {"function": {"name": "weather", "arguments": {"city": "Köln 🦊"}}}
    messages = [
        USER,
        {"role": "assistant", "content": "One moment.", "reasoning_content": "Easy.", "tool_calls": [call]},
        {"role": "tool", "content": "12 degrees"},
    ]
    token_of_first = says(first, enable_thinking=True)
    token_of_second = says("Cold.", messages=messages)
    tokens = [token_of_first]

    def token_of(*place):
        return tokens[0](*place)

    with mock_server(chat_template=TEMPLATE, token_of=token_of) as server:
        client = server.openai()
        opened = client.responses.create(model="mock", input=INPUT, tools=[TOOL], reasoning={"effort": "low"})
        assert opened.store is True
        tokens[0] = token_of_second
        output = {"type": "function_call_output", "call_id": opened.output[-1].call_id, "output": "12 degrees"}
        answer = client.responses.create(
            model="mock", input=[output], tools=[TOOL], previous_response_id=opened.id, instructions=None
        )
        assert (answer.output_text, answer.previous_response_id) == ("Cold.", opened.id)
        # Sending the items themselves is the same conversation.
        items = [{"role": "user", "content": INPUT}, *(item.to_dict() for item in opened.output), output]
        again = client.responses.create(model="mock", input=items, tools=[TOOL], store=False)
        assert again.output_text == "Cold."
        assert again.usage.input_tokens == answer.usage.input_tokens


def test_stored_responses_can_be_read_and_deleted():
    with serve("Sunny.", tools=()) as server:
        client = server.openai()
        whole = client.responses.create(model="mock", input=INPUT, metadata={"a": "b"})
        *_, last = client.responses.create(model="mock", input=INPUT, stream=True)
        for response in (whole, last.response):
            assert client.responses.retrieve(response.id).model_dump() == response.model_dump()
        with pytest.raises(openai.BadRequestError, match="background"):
            client.responses.cancel(whole.id)
        client.responses.delete(whole.id)
        for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError, match="not stored"):
                call(whole.id)
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(model="mock", input=INPUT, previous_response_id=whole.id)
        assert caught.value.code == "previous_response_not_found"
        unstored = client.responses.create(model="mock", input=INPUT, store=False)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(unstored.id)


def test_input_items_are_listed():
    items = [{"role": "user", "content": f"Say {number}."} for number in range(3)]
    with mock_server(chat_template=TEMPLATE) as server:
        client = server.openai()
        response = client.responses.create(model="mock", input=items, max_output_tokens=1)
        listed = client.responses.input_items.list(response.id)
        assert [item.content[0].text for item in listed] == ["Say 2.", "Say 1.", "Say 0."]
        paged = client.responses.input_items.list(response.id, limit=2, order="asc")  # the client turns the page
        assert [item.content[0].text for item in paged] == ["Say 0.", "Say 1.", "Say 2."]
        assert paged.has_more
        for wrong in ({"limit": 0}, {"after": "nobody"}):
            with pytest.raises(openai.BadRequestError):
                client.responses.input_items.list(response.id, **wrong)


def test_the_oldest_go_when_the_store_is_full():
    with serve("Sunny.", tools=(), server=ServerConfig(port=0, max_stored_responses=2)) as server:
        client = server.openai()
        first, second, third = (client.responses.create(model="mock", input=INPUT) for _ in range(3))
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        for response in (second, third):
            assert client.responses.retrieve(response.id).id == response.id


@pytest.mark.parametrize("several", [False, True])
def test_a_server_that_stores_nothing_says_so(several):
    config = ServerConfig(port=0) if several else ServerConfig(port=0, max_stored_responses=0)
    word = "--frontends" if several else "--max-stored-responses"
    with serve("Sunny.", tools=(), server=config) as server:
        if several:
            server.app.service.peers = object()
        client = server.openai()
        response = client.responses.create(model="mock", input=INPUT)
        assert (response.output_text, response.store) == ("Sunny.", False)
        for fields in ({"store": True}, {"previous_response_id": response.id}):
            with pytest.raises(openai.BadRequestError, match=word):
                client.responses.create(model="mock", input=INPUT, **fields)
        with pytest.raises(openai.NotFoundError, match=word):
            client.responses.retrieve(response.id)


def test_a_client_that_leaves_leaves_nothing_behind():
    with mock_server(chat_template=TEMPLATE, step_s=0.01) as server:
        with server.openai().responses.create(model="mock", input=INPUT, stream=True) as stream:
            next(iter(stream))
        server.wait_idle()
        assert len(server.app.service.responses) == 0


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "runs no tools itself"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type", "'custom'"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name", "twice"),
        ({"tools": [{**TOOL, "parameters": 1}]}, "tools[0].parameters", "JSON schema"),
        ({"tools": [{**TOOL, "strict": 1}]}, "tools[0].strict", "true or false"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", "required"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "fly"}}, "tool_choice", "'fly'"),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice", "runs no tools"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"background": True}, "background", "background"),
        ({"conversation": "conv_1"}, "conversation", "previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt", "instructions"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"include": ["file_search_call.results"]}, "include", "file_search_call.results"),
        ({"top_logprobs": 2}, "top_logprobs", "include"),
        ({"max_output_tokens": 0}, "max_output_tokens", ">= 1"),
        ({"max_output_tokens": 10**6}, "max_output_tokens", "max_output_tokens asks for"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "reasoning.effort must be"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
        ({"temperature": 200}, "temperature", "temperature"),
        ({"input": []}, "input", "at least one"),
        ({"input": "x" * 5000}, "input", "input has"),
        ({"input": [{"role": "king", "content": ""}]}, "input[0].role", "king"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "previous_response_id"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "web_search_call"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "text only"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}, "input[0].call_id", "'c'"),
        ({"input": [{**MADE, "arguments": "["}]}, "input[0].arguments", "JSON"),
        ({"messages": [USER]}, "messages", "Use input"),
        ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
        ({"response_format": {"type": "text"}}, "response_format", "text.format"),
        ({"functions": []}, "functions", "Use tools"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "field of the request"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused(fields, param, word):
    with mock_server(chat_template=TEMPLATE) as server, server.http() as http:
        for stream in (False, True):
            response = http.post("/v1/responses", json={"input": INPUT, "stream": stream, **fields})
            assert response.status_code == 400, response.text
            error = error_of(response)
            assert error["param"] == param, error
            assert word in error["message"]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"include": ["reasoning.encrypted_content"]}, "encrypted"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"text": {"verbosity": "low"}}, "verbosity"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_changes_nothing_is_said(fields, word):
    with mock_server(chat_template=TEMPLATE) as server, server.http() as http:
        response = http.post("/v1/responses", json={"input": INPUT, "max_output_tokens": 1, **fields})
        assert response.status_code == 200
        assert word in response.headers["penstock-warning"]


def test_only_allowed_tools_are_called():
    other = {**TOOL, "name": "other"}
    shown = [
        {"type": "function", "function": {key: tool[key] for key in ("name", "description", "parameters")}}
        for tool in (TOOL, other)
    ]
    with serve(CALL, tools=shown) as server:
        fields = {"tools": [TOOL, other], "model": "mock"}
        for name, kind in (("weather", "function_call"), ("other", "message")):
            choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": name}]}
            assert [item.type for item in both(server, **fields, tool_choice=choice).output] == [kind]


def test_streamed_retrieval_is_refused():
    with serve("Sunny.", tools=()) as server:
        client = server.openai()
        response = client.responses.create(model="mock", input=INPUT)
        with pytest.raises(openai.BadRequestError, match="stream"):
            client.responses.retrieve(response.id, stream=True)
