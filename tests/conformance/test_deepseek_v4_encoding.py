"""DeepSeek V4 has no template: its makers publish code that writes prompts and reads answers. The dialect reads what
that code reads, and our template of the tests writes what it writes."""

from __future__ import annotations

import importlib.util
import json

import pytest
from dialect_round_trips import DATA, template_of
from drawn_examples import num_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.frontend.dialects.deepseek_v4 import DIALECT
from penstock.frontend.dialects.events import AnswerFold
from penstock.frontend.dialects.machine import Machine
from penstock.frontend.dialects.reading import make_reading


def _published():
    spec = importlib.util.spec_from_file_location("encoding_dsv4", DATA / "deepseek-v4" / "encoding_dsv4.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PUBLISHED = _published()
TOOLS = {name: {"type": "object", "properties": {}} for name in ("weather", "note.b", "x-1")}

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="｜"), max_size=12) | st.sampled_from(
    ["<b>", "</", "a\nb", '"}', "</tool_calls>", "<invoke>", "\\n"]
)
# A newline next to reasoning or a call is no content for us.
PROSE = st.lists(WORDS, max_size=3).map(lambda words: "".join(words).strip().replace("think>", ""))
VALUES = st.recursive(
    WORDS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.from_regex(r"[A-Za-zé_][\w.-]{0,8}", fullmatch=True)
CALLS = st.lists(st.tuples(st.sampled_from(sorted(TOOLS)), st.dictionaries(KEYS, VALUES, max_size=3)), max_size=3)


@settings(max_examples=num_examples(150), deadline=None)
@given(content=PROSE, reasoning=PROSE, calls=CALLS, thinking=st.booleans(), size=st.integers(1, 9))
def test_it_reads_what_the_published_code_reads(content, reasoning, calls, thinking, size):
    mode = "thinking" if thinking else "chat"
    message = {"role": "assistant", "content": content, "reasoning_content": reasoning if thinking else ""}
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for name, arguments in calls
        ]
    user = {"role": "user", "content": "Hello"}
    prompt = PUBLISHED.encode_messages([user], mode)
    whole = PUBLISHED.encode_messages([user, message], mode)
    assert whole.startswith(prompt)
    expected = PUBLISHED.parse_message_from_completion_text(whole[len(prompt) :], mode)
    answer = whole[len(prompt) :].removesuffix(PUBLISHED.eos_token)
    machine, fold = Machine(DIALECT, make_reading(DIALECT, prompt, tools=TOOLS)), AnswerFold()
    for at in range(0, len(answer), size):
        fold.add(machine.push(answer[at : at + size]))
    fold.add(machine.finish())
    assert fold.content == expected["content"]
    assert fold.reasoning == expected["reasoning_content"]
    read = [(call.name, json.loads(call.arguments)) for call in fold.calls]
    published = [one["function"] for one in expected["tool_calls"]]
    assert read == [(one["name"], json.loads(one["arguments"])) for one in published]
    assert read == calls


def call(name: str, call_id: str, **arguments):
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "Hello"}
HISTORY = [
    {"role": "system", "content": "Be kind."},
    USER,
    {"role": "assistant", "content": "", "reasoning_content": "Both.", "tool_calls": [
        call("weather", "1", city="Köln", days=3, hours=[1, 2.5]), call("clock", "2"),
    ]},
    {"role": "tool", "tool_call_id": "1", "content": "sun"},
    {"role": "tool", "tool_call_id": "2", "content": "noon"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Noon.", "reasoning_content": "Easy."},
]  # fmt: skip


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("length", [2, 3, 5, 6, 7])
def test_the_template_writes_what_the_published_code_writes(thinking, length):
    messages = HISTORY[:length]
    ours = template_of("deepseek_v4.jinja").render(messages, thinking=thinking, add_generation_prompt=True)
    as_text = [
        message
        if "tool_calls" not in message
        else message
        | {
            "tool_calls": [
                one | {"function": one["function"] | {"arguments": json.dumps(one["function"]["arguments"])}}
                for one in message["tool_calls"]
            ]
        }
        for message in messages
    ]
    published = PUBLISHED.encode_messages(as_text, "thinking" if thinking else "chat")
    published = published.replace(PUBLISHED.bos_token, "<s>").replace(PUBLISHED.eos_token, "</s>")
    assert ours == published
