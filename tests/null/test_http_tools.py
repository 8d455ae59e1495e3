"""Tool calls and reasoning through a whole server, read by OpenAI's own client: streamed and whole answers are one."""

from __future__ import annotations

import json

import jsonschema
import pytest
from http_fixtures import CHATML, error_of, mock_server
from tool_fixtures import CALL, OTHER, TEMPLATE, USER, WEATHER, says

from penstock.frontend.dialects.events import ContentText, ReasoningText
from penstock.frontend.text.answer_stream import AnswerStream
from penstock.mock.executor import mock_token
from penstock.mock.tokenizer import ByteTokenizer
from penstock.structured.select import installed_packages
from penstock.types.decision import Decision, Rejection


def both(server, **fields):
    """The answer as a dictionary, whole and put together from its stream by the rules of the API; they must agree."""
    client = server.openai()
    request = {"model": "mock", "messages": [USER], "temperature": 0, **fields}
    whole = client.chat.completions.create(**request).choices[0].model_dump()
    message: dict = {"content": "", "reasoning": "", "reasoning_content": "", "tool_calls": []}
    finish = None
    for chunk in client.chat.completions.create(**request, stream=True):
        (choice,) = chunk.choices
        assert finish is None
        finish = choice.finish_reason
        news = chunk.model_dump(exclude_unset=True)["choices"][0]
        assert news["delta"] or finish or news["logprobs"] or news.get("token_ids")  # no event without news
        delta = choice.delta.model_dump()
        for name in ("content", "reasoning", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls") or ():
            if call["index"] == len(message["tool_calls"]):
                assert call["id"]
                assert call["type"] == "function"
                message["tool_calls"].append({"name": call["function"]["name"], "arguments": ""})
            message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    said = whole["message"]
    assert (said["content"] or "") == message["content"]
    for name in ("reasoning", "reasoning_content"):
        assert (said.get(name) or "") == message[name]
    calls = [call["function"] for call in said["tool_calls"] or ()]
    assert calls == message["tool_calls"]
    assert whole["finish_reason"] == finish
    return whole


def test_calls_come_back_as_calls():
    with mock_server(chat_template=TEMPLATE, token_of=says(f"Let me see.\n{CALL}\n{OTHER}")) as server:
        choice = both(server, tools=[WEATHER])
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Let me see."
        first, second = choice["message"]["tool_calls"]
        assert json.loads(first["function"]["arguments"]) == {"city": "Köln 🦊"}
        assert first["function"]["name"] == "weather"
        assert first["id"] != second["id"]


def test_a_call_alone_has_no_content():
    with mock_server(chat_template=TEMPLATE, token_of=says(CALL)) as server:
        message = both(server, tools=[WEATHER])["message"]
        assert message["content"] is None
        assert len(message["tool_calls"]) == 1


@pytest.mark.parametrize("cut", [len("Well.\n") + 40, len("Well.\n") + 20])
def test_what_is_cut_off_is_not_lost_and_not_called_complete(cut):
    with mock_server(chat_template=TEMPLATE, token_of=says("Well.\n" + CALL)) as server:
        choice = both(server, tools=[WEATHER], max_tokens=cut)
        assert choice["finish_reason"] == "length"
        message = choice["message"]
        if message["tool_calls"]:
            assert message["content"] == "Well."
            assert message["tool_calls"][0]["function"]["arguments"] == '{"city"'[: cut - 38]
        else:
            assert message["content"] == ("Well.\n" + CALL)[:cut]


def test_unknown_tools_are_text_and_the_answer_stopped():
    text = CALL.replace("weather", "fly")
    with mock_server(chat_template=TEMPLATE, token_of=says(text)) as server:
        choice = both(server, tools=[WEATHER])
        assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", text)


def test_one_call_at_most():
    with mock_server(chat_template=TEMPLATE, token_of=says(CALL + OTHER)) as server:
        choice = both(server, tools=[WEATHER], parallel_tool_calls=False)
        assert choice["finish_reason"] == "tool_calls"
        assert len(choice["message"]["tool_calls"]) == 1
        server.wait_idle()


def test_every_choice_has_its_own_calls():
    request = {"model": "mock", "messages": [USER], "tools": [WEATHER], "n": 2}
    with mock_server(chat_template=TEMPLATE, token_of=says(f"Well.\n{CALL}{OTHER}")) as server:
        client = server.openai()
        whole = client.chat.completions.create(**request).choices
        streamed: dict[int, list[tuple[str, str]]] = {0: [], 1: []}
        for chunk in client.chat.completions.create(**request, stream=True):
            for choice in chunk.choices:
                calls = streamed[choice.index]
                for call in choice.delta.tool_calls or ():
                    if call.index == len(calls):
                        calls.append((call.function.name, ""))
                    name, arguments = calls[call.index]
                    calls[call.index] = (name, arguments + (call.function.arguments or ""))
    ids = [call.id for choice in whole for call in choice.message.tool_calls]
    assert len(set(ids)) == 4
    for choice in whole:
        assert choice.finish_reason == "tool_calls"
        assert streamed[choice.index] == [
            (call.function.name, call.function.arguments) for call in choice.message.tool_calls
        ]


def test_reasoning_is_separate():
    text = "Easy: <tool_call> is no call here.\n</think>\n\nSunny."
    with mock_server(chat_template=TEMPLATE, token_of=says(text, tools=(), enable_thinking=True)) as server:
        extra = {"chat_template_kwargs": {"enable_thinking": True}}
        message = both(server, extra_body=extra)["message"]
        assert message["reasoning_content"] == message["reasoning"] == "Easy: <tool_call> is no call here."
        assert message["content"] == "Sunny."
        silent = both(server, extra_body={**extra, "include_reasoning": False})["message"]
        assert "reasoning_content" not in silent
        assert silent["content"] == "Sunny."
        effort = both(server, reasoning_effort="high")["message"]
        assert effort == message


def test_reasoning_that_the_model_opens_itself():
    with mock_server(chat_template=TEMPLATE, token_of=says(f"<think>\nHm.\n</think>\n\n{CALL}")) as server:
        message = both(server, tools=[WEATHER])["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm.", None)


def test_a_call_inside_reasoning_that_nobody_closed():
    text = f"Hm, <tool_call> or not?\n{CALL}\n</think>\n\nDone."
    with mock_server(chat_template=TEMPLATE, token_of=says(text, enable_thinking=True)) as server:
        extra = {"chat_template_kwargs": {"enable_thinking": True}}
        choice = both(server, tools=[WEATHER], extra_body=extra)
        assert choice["finish_reason"] == "tool_calls"
        message = choice["message"]
        assert (message["reasoning"], message["content"]) == ("Hm, <tool_call> or not?", "Done.")
        assert len(message["tool_calls"]) == 1
        silent = both(server, tools=[WEATHER], extra_body={**extra, "include_reasoning": False})["message"]
        assert (silent["content"], len(silent["tool_calls"])) == ("Done.", 1)


def test_half_a_character_in_a_string_of_arguments_can_be_sent():
    text = CALL.replace('{"city": "Köln 🦊"}', json.dumps('{"city": "\ud83e"}'))
    with mock_server(chat_template=TEMPLATE, token_of=says(text)) as server:
        (call,) = both(server, tools=[WEATHER])["message"]["tool_calls"]
        assert call["function"]["arguments"] == '{"city": "\\ud83e"}'


def test_a_prefill_inside_reasoning():
    messages = [USER, {"role": "assistant", "content": "<think>\nI "}]
    kwargs = {"add_generation_prompt": False, "continue_final_message": True}
    token_of = says("know.\n</think>\n\nYes.", tools=(), messages=messages, **kwargs)
    with mock_server(chat_template=TEMPLATE, token_of=token_of) as server:
        message = both(server, messages=messages, extra_body={"continue_final_message": True})["message"]
        assert (message["reasoning"], message["content"]) == ("know.", "Yes.")


def test_reasoning_goes_back_in_under_either_name():
    for name in ("reasoning", "reasoning_content"):
        body = {"messages": [USER, {"role": "assistant", "content": "Yes.", name: "Hm."}], "add_special_tokens": False}
        with mock_server(chat_template=TEMPLATE) as server, server.http() as http:
            ids = http.post("/tokenize", json=body).json()["tokens"]
        assert "<think>\nHm.\n</think>\n\nYes." in ByteTokenizer().decode(ids)


def test_choice_none_shows_no_tools_and_reads_no_calls():
    with mock_server(chat_template=TEMPLATE, token_of=says(CALL, tools=())) as server:
        choice = both(server, tools=[WEATHER], tool_choice="none")
        assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", CALL)


def test_logprobs_and_token_ids_ride_along():
    text = f"Well.\n{CALL}"
    with mock_server(chat_template=TEMPLATE, token_of=says(text)) as server:
        extra = {"return_token_ids": True}
        whole = both(server, tools=[WEATHER], logprobs=True, extra_body=extra)
        assert bytes(b for entry in whole["logprobs"]["content"] for b in entry["bytes"]).startswith(text.encode())
        assert whole["token_ids"][: len(text.encode())] == list(text.encode())


def test_answers_that_can_only_be_content_have_no_machine(monkeypatch):
    def refuse(*_):
        raise AssertionError("a machine in the way of plain text")

    closed = {"chat_template_kwargs": {"enable_thinking": False}}
    with mock_server(chat_template=TEMPLATE, token_of=says("Yes.", tools=(), enable_thinking=False)) as server:
        monkeypatch.setattr(AnswerStream, "__init__", refuse)
        assert both(server, extra_body=closed)["message"]["content"] == "Yes."


# -- calls that are promised: the engine masks what would break them ----------------------------------------------

TIMES = {
    "type": "object",
    "properties": {"zone": {"enum": ["CET", "UTC"]}, "hours": {"type": "integer", "minimum": 0, "maximum": 24}},
    "required": ["zone", "hours"],
    "additionalProperties": False,
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": TIMES}}
STRICT_CLOCK = {"type": "function", "function": {**CLOCK["function"], "strict": True}}
NAMED_CLOCK = {"type": "function", "function": {"name": "clock"}}
WRONG_TIME = '<tool_call>\n{"name": "clock", "arguments": {"zone": "Mars", "hours": "many", "why": 1}}\n</tool_call>'
NO_BACKEND = Decision("structured output", None, "no backend", (Rejection("llguidance", ("not installed",)),))
CLOSED = {"chat_template_kwargs": {"enable_thinking": False}}  # the model cannot begin with reasoning

needs_llguidance = pytest.mark.skipif("llguidance" not in installed_packages(), reason="llguidance is not installed")


def rambles(seed: int, _request: int, position: int) -> int:
    """Letters without sense, the same for every request: what is a call at the end is so because of the masks."""
    return mock_token(seed, 0, position)


def calls_of(choice) -> list[tuple[str, dict]]:
    """Names and arguments, which must fit TIMES where they are those of the clock."""
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in _calls(choice)]
    for name, arguments in calls:
        if name == "clock":
            jsonschema.validate(arguments, TIMES)
    return calls


def _calls(choice):
    return choice["message"]["tool_calls"] or ()


@needs_llguidance
@pytest.mark.parametrize("choice", ["required", NAMED_CLOCK])
@pytest.mark.parametrize(
    "token_of", [rambles, says("I would rather not. " * 20, tools=(CLOCK,), enable_thinking=False)]
)
def test_a_call_that_is_demanded_comes_whatever_the_model_would_say(choice, token_of):
    with mock_server(chat_template=TEMPLATE, token_of=token_of) as server:
        fields = {"tools": [CLOCK], "tool_choice": choice, "parallel_tool_calls": False, "extra_body": CLOSED}
        answer = both(server, **fields)
        assert answer["finish_reason"] == "tool_calls"
        assert answer["message"]["content"] is None
        assert [name for name, _ in calls_of(answer)] == ["clock"]
        server.wait_idle()


@needs_llguidance
def test_the_named_tool_is_called_and_not_the_one_that_the_model_wanted():
    tools = [WEATHER, CLOCK]
    token_of = says(CALL + "\n" + OTHER, tools=tools, enable_thinking=False)
    with mock_server(chat_template=TEMPLATE, token_of=token_of) as server:
        named = both(server, tools=tools, tool_choice=NAMED_CLOCK, extra_body=CLOSED)
        assert [name for name, _ in calls_of(named)] == ["clock"]
        required = both(server, tools=tools, tool_choice="required", extra_body=CLOSED)
        assert calls_of(required) == [("weather", {"city": "Köln 🦊"}), ("weather", {"city": "Rom"})]


@needs_llguidance
def test_arguments_of_a_strict_tool_fit_and_text_stays_free():
    tools = [WEATHER, STRICT_CLOCK]
    with mock_server(chat_template=TEMPLATE, token_of=says(f"Let me see.\n{WRONG_TIME}", tools=tools)) as server:
        answer = both(server, tools=tools)
        assert answer["finish_reason"] == "tool_calls"
        assert answer["message"]["content"].startswith("Let me see.")
        assert calls_of(answer)[0][0] == "clock"
    with mock_server(chat_template=TEMPLATE, token_of=says("It is late.", tools=tools)) as server:
        answer = both(server, tools=tools)
        assert (answer["finish_reason"], answer["message"]["content"]) == ("stop", "It is late.")
        assert calls_of(answer) == []


def test_without_strict_the_same_arguments_come_as_the_model_wrote_them():
    with mock_server(chat_template=TEMPLATE, token_of=says(WRONG_TIME, tools=[CLOCK])) as server:
        (call,) = _calls(both(server, tools=[CLOCK]))
        assert json.loads(call["function"]["arguments"]) == {"zone": "Mars", "hours": "many", "why": 1}


@needs_llguidance
def test_reasoning_comes_before_a_call_that_is_demanded():
    thought = "Shall I <tool_call> it?\n</think>\n\n"
    token_of = says(thought + "No!", tools=[CLOCK], enable_thinking=True)
    with mock_server(chat_template=TEMPLATE, token_of=token_of) as server:
        extra = {"chat_template_kwargs": {"enable_thinking": True}}
        answer = both(server, tools=[CLOCK], tool_choice=NAMED_CLOCK, extra_body=extra)
        assert answer["message"]["reasoning_content"] == "Shall I <tool_call> it?"
        assert answer["message"]["content"] is None
        assert [name for name, _ in calls_of(answer)] == ["clock"]


@needs_llguidance
def test_several_sequences_of_one_request_each_have_their_call():
    with mock_server(chat_template=TEMPLATE, token_of=mock_token) as server:
        fields = {"model": "mock", "messages": [USER], "tools": [CLOCK], "tool_choice": NAMED_CLOCK, "n": 3}
        answer = server.openai().chat.completions.create(**fields, extra_body=CLOSED)
        assert len(answer.choices) == 3
        for choice in answer.choices:
            assert [name for name, _ in calls_of(choice.model_dump())] == ["clock"]


@needs_llguidance
def test_with_a_form_the_model_may_call_or_answer():
    """An agent's request: tools to call, and the form of its last answer."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "last", "schema": schema}}
    for text, calls in ((OTHER, [("weather", {"city": "Rom"})]), ('{"a": 5}', [])):
        token_of = says(text, tools=[WEATHER], enable_thinking=False)
        with mock_server(chat_template=TEMPLATE, token_of=token_of) as server:
            answer = both(server, tools=[WEATHER], response_format=form, extra_body=CLOSED)
            assert calls_of(answer) == calls
            assert answer["message"]["content"] == (None if calls else text)
            assert answer["finish_reason"] == ("tool_calls" if calls else "stop")


@needs_llguidance
def test_what_a_strict_tool_asks_and_its_dialect_cannot_enforce_is_a_400():
    function = {"name": "f", "strict": True, "parameters": {"properties": {"x": {"type": "string", "pattern": "a"}}}}
    body = {"messages": [USER], "tools": [{"type": "function", "function": function}]}
    with mock_server(chat_template=TEMPLATE, tool_dialect="qwen3_coder") as server, server.http() as http:
        response = http.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert error_of(response)["param"] == "tools"
        assert error_of(response)["message"].startswith("Leave pattern out of the parameter 'x' of the function 'f'")


@needs_llguidance
def test_a_form_and_a_demanded_call_exclude_each_other():
    with mock_server(chat_template=TEMPLATE) as server, server.http() as http:
        form = {"type": "json_object"}
        body = {"messages": [USER], "tools": [CLOCK], "tool_choice": "required", "response_format": form}
        response = http.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert "response_format" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [CLOCK], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": NAMED_CLOCK}, "tool_choice"),
        ({"tools": [WEATHER, STRICT_CLOCK]}, "tools"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_without_a_backend_nothing_is_promised(fields, param, stream):
    with mock_server(chat_template=TEMPLATE, structured=NO_BACKEND) as server, server.http() as http:
        response = http.post("/v1/chat/completions", json={"messages": [USER], "stream": stream, **fields})
        assert response.status_code == 400
        error = error_of(response)
        assert error["param"] == param
        assert "constrained output" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "twice"),
        ({"functions": [{"name": "f"}]}, "functions", "tools"),
        ({"function_call": {"name": "f"}}, "function_call", "tool_choice"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "low"),
    ],
)
def test_what_cannot_be_promised_is_refused(fields, param, word):
    with mock_server(chat_template=TEMPLATE) as server, server.http() as http:
        response = http.post("/v1/chat/completions", json={"messages": [USER], **fields})
        assert response.status_code == 400
        error = error_of(response)
        assert error["param"] == param
        assert word in error["message"]


@pytest.mark.parametrize(
    ("template", "dialect", "word"),
    [
        (CHATML, "auto", "--tool-dialect"),
        (CHATML, "hermes", "--chat-template"),
        (TEMPLATE, "none", "--tool-dialect none"),
        (CHATML, "think", "--tool-dialect"),
    ],
)
def test_tools_that_the_model_cannot_use_are_refused(template, dialect, word):
    with mock_server(chat_template=template, tool_dialect=dialect) as server, server.http() as http:
        body = {"messages": [USER], "tools": [WEATHER]}
        error = error_of(http.post("/v1/chat/completions", json=body))
        assert error["param"] == "tools"
        assert word in error["message"]


def test_an_effort_that_changes_nothing_is_said():
    with mock_server() as server, server.http() as http:
        body = {"messages": [USER], "max_tokens": 1, "reasoning_effort": "high"}
        response = http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        assert "reasoning_effort ignored" in response.headers["penstock-warning"]


def test_the_decision_is_served():
    with mock_server(chat_template=TEMPLATE) as server, server.http() as http:
        decisions = http.get("/debug/decisions").json()["decisions"]
        (dialect,) = [one for one in decisions if one["subject"] == "dialect"]
        assert dialect["chosen"] == "hermes"
        assert {one["name"] for one in dialect["rejected"]} >= {"llama3_json", "qwen3_coder"}


def test_slow_readers_get_the_same_answer():
    """A congested stream folds events into fewer chunks; nothing of them is lost."""
    from penstock.frontend.generation import fold_deltas
    from penstock.frontend.openai.reading import events_delta
    from penstock.frontend.text.stream import TextDelta

    parts = [TextDelta(events=(ReasoningText("a"),)), TextDelta(events=(ReasoningText("b"), ContentText("c")))]
    folded = fold_deltas(parts)
    assert folded.events == (ReasoningText("ab"), ContentText("c"))
    delta = events_delta(folded.events, include_reasoning=True)
    assert (delta.reasoning, delta.content) == ("ab", "c")
