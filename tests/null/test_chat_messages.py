"""OpenAI messages: what is taken, what it becomes, and which field an error names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidRequestError
from penstock.frontend.chat.messages import ROLES, normalize_messages
from penstock.frontend.chat.template import ChatTemplate


def one(message):
    (normalized,) = normalize_messages([message])
    return normalized


@pytest.mark.parametrize("role", ["system", "developer", "user"])
def test_plain_messages_stay_as_they_are(role):
    assert one({"role": role, "content": "Hi", "name": "Ada"}) == {"role": role, "content": "Hi", "name": "Ada"}


def test_text_parts_are_kept_as_parts():
    parts = [
        {"type": "text", "text": "a"},
        {"type": "input_text", "text": "b"},
        "c",
        {"type": "refusal", "refusal": "d"},
    ]
    assert one({"role": "user", "content": parts})["content"] == [{"type": "text", "text": text} for text in "abcd"]


def test_tool_calls_get_their_arguments_as_objects():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, 2]}'}}
    message = one({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message["content"] is None
    assert message["tool_calls"][0] == {
        "type": "function",
        "id": "1",
        "function": {"name": "f", "arguments": {"x": [1, 2]}},
    }


@pytest.mark.parametrize("arguments", [None, "", "{}", {}])
def test_missing_arguments_are_an_empty_object(arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    assert one({"role": "assistant", "tool_calls": [call]})["tool_calls"][0]["function"]["arguments"] == {}


def test_a_refusal_and_an_empty_answer_are_text():
    assert one({"role": "assistant", "content": None, "refusal": "No."})["content"] == "No."
    assert one({"role": "assistant"})["content"] == ""


def test_tool_results_keep_the_id_of_their_call():
    message = {"role": "tool", "content": "42", "tool_call_id": "1"}
    assert one(message) == message


def test_unknown_fields_do_not_reach_the_template():
    assert one({"role": "user", "content": "a", "audio": {"id": "x"}}) == {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ("hello", "messages"),
        (None, "messages"),
        ([], "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "a"}], "messages[0].role"),
        ([{"role": "robot", "content": "a"}], "messages[0].role"),
        ([{"role": ["user"], "content": "a"}], "messages[0].role"),
        ([{"role": "user", "content": "a"}, {"role": "user"}], "messages[1].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [3]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": []}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "a", "name": 3}], "messages[0].name"),
        ([{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": "f"}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([{"role": "assistant", "tool_calls": [{"id": 3, "function": {"name": "f"}}]}], "messages[0].tool_calls[0].id"),
    ],
)
def test_a_wrong_message_names_its_field(messages, param):
    with pytest.raises(InvalidRequestError) as caught:
        normalize_messages(messages)
    assert caught.value.param == param


def test_an_image_is_refused_with_the_reason():
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(InvalidRequestError, match="takes text only"):
        normalize_messages([{"role": "user", "content": [part]}])


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
PARTS = st.lists(st.one_of(JSON, st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": JSON})))
CALLS = st.lists(
    st.one_of(JSON, st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": JSON, "arguments": JSON})}))
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.one_of(st.sampled_from(sorted(ROLES)), JSON)},
    optional={"content": st.one_of(JSON, PARTS), "tool_calls": st.one_of(JSON, CALLS), "name": JSON, "refusal": JSON},
)


@given(messages=st.one_of(JSON, st.lists(st.one_of(MESSAGE, JSON), max_size=3)))
def test_any_json_is_normalised_or_refused_with_its_field(messages):
    refused = None
    try:
        normalized = normalize_messages(messages)
    except InvalidRequestError as error:
        refused = error.param
    if refused is not None:
        assert refused.startswith("messages")
        return
    assert [message["role"] for message in normalized] == [message["role"] for message in messages]
    rendered = ChatTemplate("{% for m in messages %}{{ m.content }}{{ m.tool_calls | default([]) }}{% endfor %}", {})
    assert isinstance(rendered.render(normalized), str)
