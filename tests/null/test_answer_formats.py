"""Responses and messages: however news are grouped, the events of a stream add up to the whole answer."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.frontend.anthropic.format import MessageFormat
from penstock.frontend.anthropic.partial_json import partial_object
from penstock.frontend.dialects.events import ArgumentText, CallBegun, CallEnded, ContentText, ReasoningText
from penstock.frontend.generation import delta_of, fold_deltas
from penstock.frontend.openai.answers import OutputDetails, TokensDetails, Usage
from penstock.frontend.openai.errors import HttpError
from penstock.frontend.openai.format import Head
from penstock.frontend.responses.answers import Response
from penstock.frontend.responses.format import ResponseFormat
from penstock.frontend.text.stream import TextDelta, TextFold

HEAD = Head(id="resp_abc", created=1, model="m")
USAGE = Usage(
    prompt_tokens=7,
    completion_tokens=5,
    total_tokens=12,
    prompt_tokens_details=TokensDetails(cached_tokens=3),
    completion_tokens_details=OutputDetails(reasoning_tokens=2),
)


@st.composite
def streams(draw):
    """News of one answer as a dialect's machine gives them, or as plain text."""
    finish = draw(st.sampled_from(["stop", "length", "tool_calls"]))
    if draw(st.booleans()):
        texts = draw(st.lists(st.text(min_size=1, max_size=3), max_size=5))
        return [*(TextDelta(text=text, token_ids=(1,)) for text in texts), TextDelta(finish_reason=finish)]
    events = []
    num_calls = 0
    for kind in draw(st.lists(st.sampled_from("crw"), max_size=6)):
        pieces = draw(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3))
        if kind == "c":
            events += [ContentText(piece) for piece in pieces]
        elif kind == "r":
            events += [ReasoningText(piece) for piece in pieces]
        else:
            arguments = json.dumps({"a": pieces})
            cut = draw(st.integers(0, len(arguments)))
            events.append(CallBegun(num_calls, f"call_{num_calls}", "f"))
            complete = draw(st.booleans())
            shown = [arguments[:cut], arguments[cut:]] if complete else [arguments[:cut]]
            events += [ArgumentText(num_calls, text) for text in shown if text]
            events.append(CallEnded(num_calls, complete))
            num_calls += 1
    deltas = []
    while events:
        size = draw(st.integers(1, 3))
        deltas.append(TextDelta(text="x", token_ids=(1,), events=tuple(events[:size])))
        del events[:size]
    return [*deltas, TextDelta(finish_reason=finish, events=())]


def events_of(data: bytes) -> list[dict]:
    """Server-sent events; the name of each is the type inside."""
    found = []
    for block in data.decode().split("\n\n"):
        if block:
            name, _, body = block.partition("\n")
            found.append(json.loads(body.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def grouped(deltas, joined):
    groups = [[deltas[0]]]
    for delta, join in zip(deltas[1:], joined * len(deltas), strict=False):
        if join:
            groups[-1].append(delta)
        else:
            groups.append([delta])
    return [fold_deltas(group) for group in groups]


def whole_of(deltas):
    fold = TextFold()
    for delta in deltas:
        fold.add(delta)
    return {0: delta_of(fold)}


def response_format():
    response = Response(
        id=HEAD.id, created_at=1, model="m", status="in_progress", output=[], parallel_tool_calls=True, temperature=1.0,
        top_p=1.0, tool_choice="auto", tools=[], store=False, text={}, reasoning={},
    )  # fmt: skip
    kept = []
    return ResponseFormat(head=HEAD, response=response, keep=lambda one: kept.append(one.id)), kept


@settings(deadline=None)
@given(streams(), st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_response_is_the_fold_of_its_events(deltas, joined):
    form, kept = response_format()
    whole = json.loads(form.answer(whole_of(deltas), USAGE))
    assert kept == [HEAD.id]
    form, kept = response_format()
    data = b"".join([form.chunk(0, delta) for delta in grouped(deltas, joined)])
    assert kept == []
    events = events_of(data + form.last_events(USAGE))
    assert kept == [HEAD.id]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    last = events[-1]["response"]
    for one in (last, whole):
        one.pop("completed_at")
    assert last == whole
    assert events[-1]["type"] == f"response.{whole['status']}"
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == whole["output"]
    texts: dict[int, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            texts[event["output_index"]] = texts.get(event["output_index"], "") + event["delta"]
    for index, item in enumerate(whole["output"]):
        text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert texts.get(index, "") == text
        assert item["status"] in ("completed", "incomplete")


@settings(deadline=None)
@given(streams(), st.lists(st.booleans(), min_size=6, max_size=6), st.booleans())
def test_a_message_is_the_fold_of_its_events(deltas, joined, thinks):
    fields = {"head": HEAD, "num_prompt": 7, "include_thinking": thinks}
    whole = json.loads(MessageFormat(**fields).answer(whole_of(deltas), USAGE))
    form = MessageFormat(**fields)
    data = b"".join([form.chunk(0, delta) for delta in grouped(deltas, joined)])
    first, *events = events_of(data + form.last_events(USAGE))
    message, arguments = first["message"], {}
    for event in events:
        if event["type"] == "content_block_start":
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "input_json_delta":
                arguments[event["index"]] = arguments.get(event["index"], "") + delta["partial_json"]
            else:
                field = delta["type"].removesuffix("_delta")
                block[field] += delta[field]
        elif event["type"] == "message_delta":
            message |= {**event["delta"], "usage": event["usage"]}
    calls = [index for index, block in enumerate(message["content"]) if block["type"] == "tool_use"]
    assert arguments.keys() <= set(calls)
    ended = [event.complete for delta in deltas for event in delta.events or () if isinstance(event, CallEnded)]
    for index, complete in zip(calls, ended, strict=True):
        text = arguments.get(index, "")
        message["content"][index]["input"] = json.loads(text) if complete else partial_object(text)
    assert message == whole
    assert (whole["usage"]["input_tokens"], whole["usage"]["cache_read_input_tokens"]) == (4, 3)
    assert thinks or all(block["type"] != "thinking" for block in whole["content"])


def test_failures_end_streams_in_the_words_of_each_protocol():
    form, kept = response_format()
    form.chunk(0, TextDelta(text="a"))
    (failed,) = events_of(form.error_events(HttpError(500, "No.")))
    assert (failed["type"], failed["response"]["error"]) == (
        "response.failed",
        {"code": "server_error", "message": "No."},
    )
    assert kept == []
    message = MessageFormat(head=HEAD, num_prompt=1, include_thinking=True)
    (error,) = events_of(message.error_events(HttpError(503, "No.")))
    assert (error["type"], error["error"]) == ("error", {"type": "overloaded_error", "message": "No."})
