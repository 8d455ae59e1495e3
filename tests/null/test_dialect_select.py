"""Which dialect is chosen, and why; which special tokens stay visible; when nothing has to be read."""

from __future__ import annotations

import pytest
from text_fixtures import byte_level_tokenizer

from penstock.errors import ConfigError
from penstock.frontend.chat.template import ChatTemplate
from penstock.frontend.dialects.constrain import call_constraint
from penstock.frontend.dialects.contract import Reading, Tool
from penstock.frontend.dialects.reading import make_reading
from penstock.frontend.dialects.select import select_dialect
from penstock.frontend.dialects.table import DIALECTS
from penstock.frontend.text.stream import TextStream
from penstock.mock.tokenizer import ByteTokenizer
from penstock.types.output import TokenUpdate
from penstock.types.request import SamplingParams

HERMES = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "{% endfor %}"
)
BY_NAME = {dialect.name: dialect for dialect in DIALECTS}
TOOLS = {"clock": {"type": "object", "properties": {}}}


def select(source: str, asked: str = "auto", tokenizer=None):
    template = ChatTemplate(source, {})
    return select_dialect(template.sources, template.render, tokenizer or ByteTokenizer(), asked)


def test_a_rendered_call_decides():
    choice = select(HERMES)
    assert choice.decision.chosen == "hermes"
    assert "no reasoning" in choice.decision.why
    assert choice.dialect.reasoning is None
    reasons = {one.name: one.reasons for one in choice.decision.rejected}
    assert all(reasons[name] for name in ("qwen3_coder", "llama3_json", "think"))
    assert select(HERMES + "{# <think> #}").dialect.reasoning is not None


def test_templates_without_calls_have_no_dialect():
    choice = select("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert choice.dialect is None
    assert "text only" in choice.decision.why
    assert select_dialect({}, None, ByteTokenizer()).dialect is None


def test_the_user_decides():
    assert select(HERMES, "none").dialect is None
    named = select(HERMES, "llama3_json")
    assert named.dialect.name == "llama3_json"
    assert "named by --tool-dialect, although" in named.decision.why
    with pytest.raises(ConfigError, match="one of auto, none, step3_5, qwen3_coder"):
        select(HERMES, "hermez")


def test_special_tokens_of_a_dialect_stay_in_the_text():
    class Tokenizer(ByteTokenizer):
        special_token_ids = frozenset({1, 2, 3})

        def token_text(self, token_id):
            return {1: "<tool_call>", 2: "</s>", 3: "</tool_call>"}.get(token_id, "")

        def token_bytes(self, token_id):
            return self.token_text(token_id).encode()

    choice = select(HERMES, tokenizer=Tokenizer())
    assert choice.visible_token_ids == {1, 3}
    stream = TextStream(Tokenizer(), SamplingParams(), visible_token_ids=choice.visible_token_ids)
    assert stream.on_update(TokenUpdate(request_id=1, token_ids=(1, 2, 3))).text == "<tool_call></tool_call>"
    assert TextStream(Tokenizer(), SamplingParams()).on_update(TokenUpdate(1, (1, 2, 3))).text == ""


def test_when_there_is_something_to_read():
    hermes, think = BY_NAME["hermes"], BY_NAME["think"]
    assert make_reading(None, "", tools=TOOLS) is None
    assert make_reading(think, "<think>\n\n</think>\n\n", tools=TOOLS) is None
    assert make_reading(hermes, "<think>\n\n</think>\n\n", tools={}) is None
    assert make_reading(hermes, "assistant\n", tools={}) == Reading(tools={})
    assert make_reading(hermes, "assistant\n<think>\n", tools={}).in_reasoning
    assert make_reading(hermes, "x", tools=TOOLS, prefill="<think>a</think>b").reads_reasoning is False
    assert make_reading(hermes, "x", tools=TOOLS, prefill="<think>a").in_reasoning
    # What the user writes opens nothing.
    assert not make_reading(hermes, "user <think>\nassistant\n", tools={}).in_reasoning


def test_every_dialect_has_one_form_of_constraint():
    assert all((one.structure is None) != (one.constrain is None) for one in DIALECTS if one.reads_calls)


@pytest.mark.parametrize("dialect", [one for one in DIALECTS if one.structure is not None], ids=lambda one: one.name)
def test_every_dialect_can_be_constrained(dialect):
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]}
    tools = [Tool(name="weather", parameters=schema), Tool(name="clock", parameters=TOOLS["clock"])]
    opened = Reading(tools={}, in_reasoning=True, reads_reasoning=dialect.reasoning is not None)
    spec = call_constraint(dialect, tools, opened, required=True, single=True)
    assert spec is not None
    assert len(spec.tags) >= 2
    assert (spec.required, spec.single, spec.triggers) == (True, True, ())
    assert spec.after == (dialect.reasoning.end if dialect.reasoning else "")
    free = call_constraint(dialect, tools, Reading(tools={}, reads_reasoning=False), required=False, single=False)
    assert free.triggers
    assert not free.after


def test_a_token_for_thinking_tells_that_a_model_thinks():
    class Unknowing(ByteTokenizer):
        def encode(self, text, *, add_special_tokens=True):
            return [self.bos_token_id]  # "unknown"

    assert select(HERMES, tokenizer=byte_level_tokenizer()).dialect.reasoning is not None
    assert select(HERMES, tokenizer=Unknowing()).dialect.reasoning is None
