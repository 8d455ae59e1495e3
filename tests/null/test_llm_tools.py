"""LLM.chat with tools, reasoning and a form: the answers are those of a server over the same engine."""

from __future__ import annotations

import json
from dataclasses import replace

import jsonschema
import pytest
from http_fixtures import mock_server
from tool_fixtures import CALL, OTHER, TEMPLATE, USER, WEATHER, prompt_length, says

from penstock import LLM, SamplingParams, StructuredSpec
from penstock.engine import llm as llm_module
from penstock.errors import InvalidRequestError
from penstock.mock.executor import mock_token
from penstock.structured.select import installed_packages

GREEDY = SamplingParams(temperature=0, max_tokens=500)
THINKING = f"<think>\nHmm.\n</think>\n\nLet me see.\n{CALL}\n{OTHER}"
FORMED = StructuredSpec.regex("a+")
CLOSED = {"enable_thinking": False}  # the model cannot begin with reasoning
TIMES = {
    "type": "object",
    "properties": {"zone": {"enum": ["CET", "UTC"]}, "hours": {"type": "integer", "minimum": 0, "maximum": 24}},
    "required": ["zone", "hours"],
    "additionalProperties": False,
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": TIMES}}
FORM = {"type": "json_schema", "json_schema": {"name": "times", "schema": TIMES}}

needs_llguidance = pytest.mark.skipif("llguidance" not in installed_packages(), reason="llguidance is not installed")


@pytest.fixture
def both(monkeypatch):
    """Asks a server and an LLM over the same engine; answers what both say, without ids."""

    def ask(server, sampling=GREEDY, **fields):
        monkeypatch.setattr(llm_module, "build_for_llm", lambda _, *, mock: (server.client, server.app.service.assets))
        llm = LLM()
        options = dict(fields)
        kwargs = options.pop("chat_template_kwargs", {})
        outputs = llm.chat([USER], sampling, **options, **kwargs)[0].outputs
        chosen = server.openai().chat.completions.create(
            model="mock",
            messages=[USER],
            temperature=0,
            max_tokens=sampling.max_tokens,
            n=sampling.n,
            seed=sampling.seed,
            extra_body={"chat_template_kwargs": kwargs},
            **options,
        )
        said = []
        for output, choice in zip(outputs, chosen.choices, strict=True):
            message = choice.message.model_dump()
            calls = [one["function"] for one in message["tool_calls"] or ()]
            assert [{"name": call.name, "arguments": call.arguments} for call in output.tool_calls] == calls
            assert output.text == (message["content"] or "")
            assert output.message["content"] == message["content"]
            assert output.reasoning == (message.get("reasoning") or "")
            assert output.finish_reason == choice.finish_reason
            said.append((output.finish_reason, output.reasoning, output.text, calls))
        pieces = list(llm.stream_chat([USER], replace(sampling, n=1), **options, **kwargs))
        assert "".join(piece.text for piece in pieces) == outputs[0].text
        assert "".join(piece.reasoning for piece in pieces) == outputs[0].reasoning
        assert pieces[-1].finish_reason == outputs[0].finish_reason
        return said

    return ask


@pytest.mark.parametrize("max_tokens", [500, 70, 10])
def test_calls_and_reasoning_stand_apart(both, max_tokens):
    with mock_server(chat_template=TEMPLATE, token_of=says(THINKING)) as server:
        ((reason, thought, text, calls),) = both(server, replace(GREEDY, max_tokens=max_tokens), tools=[WEATHER])
    if max_tokens == 500:
        assert (reason, thought, text) == ("tool_calls", "Hmm.", "Let me see.")
        assert [json.loads(call["arguments"])["city"] for call in calls] == ["Köln 🦊", "Rom"]


def test_one_call_at_most_and_none_at_all(both):
    with mock_server(chat_template=TEMPLATE, token_of=says(f"{CALL}\n{OTHER}")) as server:
        ((_, _, _, calls),) = both(server, tools=[WEATHER], parallel_tool_calls=False)
        assert len(calls) == 1
    with mock_server(chat_template=TEMPLATE, token_of=says(CALL, tools=())) as server:
        assert both(server, tools=[WEATHER], tool_choice="none") == [("stop", "", CALL, [])]


@needs_llguidance
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
def test_a_call_that_is_demanded_comes(both, choice):
    sampling = SamplingParams(temperature=0, max_tokens=600, n=2, seed=5)
    with mock_server(
        chat_template=TEMPLATE, token_of=lambda seed, _, position: mock_token(seed, 0, position)
    ) as server:
        for reason, _, _, calls in both(
            server, sampling, tools=[CLOCK], tool_choice=choice, parallel_tool_calls=False, chat_template_kwargs=CLOSED
        ):
            assert reason == "tool_calls"
            jsonschema.validate(json.loads(calls[0]["arguments"]), TIMES)


@needs_llguidance
@pytest.mark.parametrize("thinks", [True, False])
def test_a_form_holds_behind_the_reasoning(both, thinks):
    """The prompt opens the reasoning, or closes it at once; the model rambles on behind it, as far as it may."""
    kwargs = {"enable_thinking": thinks}
    thought = list(b"Hm, {}.\n</think>\n\n") if thinks else []
    start = prompt_length(tools=(), **kwargs)

    def rambles(seed: int, _request: int, position: int) -> int:
        told = position - start
        return thought[told] if told < len(thought) else mock_token(seed, 0, position)

    with mock_server(chat_template=TEMPLATE, token_of=rambles) as server:
        options = {"response_format": FORM, "chat_template_kwargs": kwargs}
        ((reason, reasoning, text, _),) = both(server, SamplingParams(temperature=0, max_tokens=400), **options)
    assert reason == "stop"
    assert reasoning == ("Hm, {}." if thinks else "")
    jsonschema.validate(json.loads(text), TIMES)


@needs_llguidance
def test_a_model_may_think_before_a_form_and_need_not(both):
    times = '{"zone": "CET", "hours": 3}'
    for thought in ("", "<think>\nHm, {}.\n</think>\n\n"):
        with mock_server(chat_template=TEMPLATE, token_of=says(thought + times, tools=())) as server:
            ((reason, reasoning, text, calls),) = both(server, response_format=FORM)
            assert (reason, text, calls) == ("stop", times, [])
            assert bool(reasoning) == bool(thought)


def test_an_answer_is_a_message_to_go_on_with(monkeypatch):
    with mock_server(chat_template=TEMPLATE, token_of=says(CALL, enable_thinking=False)) as server:
        monkeypatch.setattr(llm_module, "build_for_llm", lambda _, *, mock: (server.client, server.app.service.assets))
        llm = LLM()
        (answer,) = llm.chat([USER], GREEDY, tools=[WEATHER], enable_thinking=False)
        message = answer.outputs[0].message
        assert message["content"] is None
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}
        prompt = llm.render_chat([USER, message, result], tools=[WEATHER])
    assert CALL in prompt


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": 5}}, "response_format"),
        ({"response_format": FORM, "tools": [WEATHER], "tool_choice": "required"}, "tool_choice"),
        ({"response_format": FORM, "sampling_params": SamplingParams(structured=FORMED)}, "response_format"),
    ],
)
def test_what_is_wrong_is_said_by_its_name(monkeypatch, options, param):
    with mock_server(chat_template=TEMPLATE) as server:
        monkeypatch.setattr(llm_module, "build_for_llm", lambda _, *, mock: (server.client, server.app.service.assets))
        with pytest.raises(InvalidRequestError) as raised:
            LLM().chat([USER], **options)
    assert raised.value.param == param


def test_a_model_whose_calls_nobody_reads_has_no_tools():
    with LLM(mock=True) as llm, pytest.raises(InvalidRequestError, match="nothing reads its calls"):
        llm.chat([USER], GREEDY, tools=[WEATHER])
