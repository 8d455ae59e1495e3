"""What a constraint of calls lets through is what the dialect reads: texts are written at random under the masks, with
the dialect's texts as special tokens of the vocabulary and without, and read back."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest

from penstock.frontend.dialects.constrain import before_content, call_constraint
from penstock.frontend.dialects.contract import Dialect, Reading, Tool
from penstock.frontend.dialects.events import AnswerFold
from penstock.frontend.dialects.machine import Machine
from penstock.frontend.dialects.table import DIALECTS
from penstock.structured.contract import Vocabulary
from penstock.structured.select import BACKENDS
from penstock.types.structured import StructuredSpec

TOOLS = {
    "pick": {
        "type": "object",
        "properties": {
            "which": {"type": "string", "enum": ["x", "yé z"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 20},
            "sure": {"type": "boolean"},
            "both": {"type": "object", "properties": {"n": {"type": "null"}}, "additionalProperties": False},
        },
        "required": ["which", "sure"],
        "additionalProperties": False,
    },
    "clock": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOL_LIST = [Tool(name=name, parameters=schema, strict=True) for name, schema in TOOLS.items()]
END_ID = 256
CALLING = [dialect for dialect in DIALECTS if dialect.reads_calls]
BY_NAME = pytest.mark.parametrize("dialect", CALLING, ids=lambda dialect: dialect.name)
# The texts that are special tokens of the models' tokenizers; all that stand between signs, where it does not say.
SPECIAL = {
    "deepseek_v32": ("｜DSML｜",),
    "deepseek_v4": (),
    "gemma4": ("<|tool_call>", "<tool_call|>", '<|"|>'),
    "hy_v3": tuple(
        f"<{end}{name}:opensource>" for name in ("tool_calls", "tool_call", "arg_key", "arg_value") for end in ("", "/")
    ),
    "minicpm5": ("<function", "</function>", "<param", "</param>"),
}
_MARK = re.compile(r"<[|｜][^<>|｜]+[|｜]>|\[/?[A-Z_]+\]")


def vocabulary_of(dialect: Dialect, *, special: bool) -> Vocabulary:
    """Bytes, an end token, and the dialect's special tokens."""
    marks = {mark for text in dialect.visible_texts() for mark in _MARK.findall(text)}
    names = sorted(SPECIAL.get(dialect.name, marks)) if special else []
    tokens = (*(bytes([value]) for value in range(256)), b"", *(b"" for _ in names))
    ids = {257 + position: name for position, name in enumerate(names)}
    return Vocabulary(
        tokens=tokens, special=frozenset({END_ID, *ids}), names={END_ID: "</s>", **ids}, end_ids=(END_ID,),
        num_ids=len(tokens),
    )  # fmt: skip


def allowed_by(mask: bytes, vocabulary: Vocabulary) -> list[int]:
    return [token_id for token_id in range(vocabulary.num_ids) if mask[token_id // 8] >> token_id % 8 & 1]


def write(spec: StructuredSpec, vocabulary: Vocabulary, seed: int) -> str:
    """A text under the masks: ends and special tokens soon, white space seldom."""
    session = BACKENDS["llguidance"].prepare(vocabulary).compile(spec).open()
    chance, data = random.Random(seed), b""
    for _ in range(3000):
        allowed = allowed_by(session.fill(), vocabulary)
        rare = [token_id for token_id in allowed if token_id >= 256]
        if END_ID in allowed and chance.random() < 0.5:
            return data.decode("utf-8")
        solid = [token_id for token_id in allowed if token_id < 127 and token_id not in b" \t\n\r"]
        one = chance.choice(rare if rare and chance.random() < 0.2 else solid or allowed)
        if one == END_ID:
            return data.decode("utf-8")
        assert session.accept(one)
        data += vocabulary.names[one].encode() if one in vocabulary.special else vocabulary.tokens[one]
        if session.is_terminated:
            return data.decode("utf-8")
    raise AssertionError(f"no end: {data[:400]!r}")


def ids_of(text: str, vocabulary: Vocabulary) -> list[int]:
    ids = {name: token_id for token_id, name in vocabulary.names.items()}
    pattern = "|".join(map(re.escape, ids))
    return [
        one for piece in re.split(f"({pattern})", text) for one in ([ids[piece]] if piece in ids else piece.encode())
    ]


def read(dialect: Dialect, text: str, reading: Reading) -> AnswerFold:
    machine, fold = Machine(dialect, reading), AnswerFold()
    fold.add(machine.push(text))
    fold.add(machine.finish())
    return fold


def check(fold: AnswerFold, text: str) -> None:
    assert not fold.content, text
    assert fold.calls
    for call in fold.calls:
        assert call.complete, text
        jsonschema.validate(json.loads(call.arguments), TOOLS[call.name])


@BY_NAME
@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "plain text"])
def test_what_may_be_written_is_read_as_calls(dialect, special):
    if dialect.name == "gpt_oss" and not special:
        return  # without its special tokens nothing ends the text of a message
    vocabulary = vocabulary_of(dialect, special=special)
    reading = Reading(tools=TOOLS, reads_reasoning=dialect.constrain is not None)
    spec = call_constraint(dialect, TOOL_LIST, reading, required=True, single=False)
    for seed in range(8):
        text = write(spec, vocabulary, seed)
        check(read(dialect, text, reading), text)


@BY_NAME
@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "plain text"])
def test_calls_stand_within_free_text(dialect, special):
    if dialect.constrain is not None:
        return  # it has no free text
    vocabulary = vocabulary_of(dialect, special=special)
    compiler = BACKENDS["llguidance"].prepare(vocabulary)
    reading = Reading(tools=TOOLS, reads_reasoning=False)
    alone = call_constraint(dialect, TOOL_LIST, reading, required=True, single=True)
    free = compiler.compile(call_constraint(dialect, TOOL_LIST, reading, required=False, single=False))
    for seed in range(4):
        text = write(alone, vocabulary, seed)
        session = free.open()
        for token_id in ids_of(f"Hm, {dialect.gap}{text}", vocabulary):
            assert session.accept(token_id), text
        wrong = text.replace("pick", "pack").replace("clock", "click")
        session = free.open()
        accepted = [session.accept(token_id) for token_id in ids_of(wrong, vocabulary)]
        # Python's notation opens a call with its name, so the name of no tool is text.
        assert all(accepted) == (dialect.name == "llama_pythonic"), wrong


WRITTEN = {
    "glm4_5": "<tool_call>note\n<arg_key>text</arg_key>\n<arg_value>TEXT</arg_value>\n</tool_call>",
    "glm4_7": "<tool_call>note<arg_key>text</arg_key><arg_value>TEXT</arg_value></tool_call>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="note">\n<parameter name="text">TEXT</parameter>\n</invoke>\n'
    "</minimax:tool_call>",
    "minimax_m3": ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="note">]<]minimax[>[<text>TEXT'
    "]<]minimax[>[</text>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>",
    "step3_5": "<tool_call>\n<function=note>\n<parameter=text>\nTEXT\n</parameter>\n</function>\n</tool_call>",
    "minicpm5": '<function name="note"><param name="text"><![CDATA[TEXT]]></param></function>',
    "gemma4": '<|tool_call>call:note{text:<|"|>TEXT<|"|>}<tool_call|>',
    "hy_v3": "<tool_calls:opensource>\n<tool_call:opensource>note<tool_sep:opensource>\n"
    "<arg_key:opensource>text</arg_key:opensource>\n<arg_value:opensource>TEXT</arg_value:opensource>\n"
    "</tool_call:opensource>\n</tool_calls:opensource>",
}


@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "plain text"])
@pytest.mark.parametrize("name", WRITTEN)
def test_any_string_can_be_an_argument(name, special):
    """Strings that no enum names: they end at their end tag, whether it is a special token or not."""
    dialect = next(one for one in DIALECTS if one.name == name)
    vocabulary = vocabulary_of(dialect, special=special)
    tool = Tool(name="note", parameters={"type": "object", "properties": {"text": {"type": "string"}}})
    reading = Reading(tools={"note": tool.parameters}, reads_reasoning=False)
    spec = call_constraint(dialect, [tool], reading, required=True, single=True)
    compiler = BACKENDS["llguidance"].prepare(vocabulary)
    for text in ("", "a < b && 'c'\n\n\"d\"", "é🦊 </", "x: {1}, ]"):
        session = compiler.compile(spec).open()
        whole = WRITTEN[name].replace("TEXT", text)
        assert all(session.accept(token_id) for token_id in [*ids_of(whole, vocabulary), END_ID]), whole
        fold = read(dialect, whole, reading)
        assert [json.loads(call.arguments) for call in fold.calls] == [{"text": text}]


def test_minicpm5_needs_no_cdata_where_nothing_is_reserved():
    dialect = next(one for one in DIALECTS if one.name == "minicpm5")
    vocabulary = vocabulary_of(dialect, special=True)
    tool = Tool(name="note", parameters={"type": "object", "properties": {"text": {"type": "string"}}})
    spec = call_constraint(
        dialect, [tool], Reading(tools={"note": tool.parameters}, reads_reasoning=False), required=True, single=True
    )
    compiler = BACKENDS["llguidance"].prepare(vocabulary)
    for text, fits in (("", True), ("Köln > x", True), ("a < b", False), ("R&amp;D", False)):
        session = compiler.compile(spec).open()
        call = f'<function name="note"><param name="text">{text}</param></function>'
        assert all(session.accept(token_id) for token_id in [*ids_of(call, vocabulary), END_ID]) == fits


def test_gpt_oss_thinks_before_it_calls_or_answers():
    dialect = next(one for one in DIALECTS if one.name == "gpt_oss")
    vocabulary = vocabulary_of(dialect, special=True)
    compiler = BACKENDS["llguidance"].prepare(vocabulary)
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    call = "<|channel|>commentary to=functions.clock <|constrain|>json<|message|>{}"
    final = "<|channel|>final<|message|>Noon."
    reading = Reading(tools=TOOLS)

    def takes(spec: StructuredSpec, text: str) -> bool:
        session = compiler.compile(spec).open()
        return all(session.accept(token_id) for token_id in [*ids_of(text, vocabulary), END_ID])

    required = call_constraint(dialect, TOOL_LIST, reading, required=True, single=False)
    strict = call_constraint(dialect, TOOL_LIST, reading, required=False, single=False)
    assert all(takes(spec, start + call) for spec in (required, strict) for start in ("", thought, thought + thought))
    assert takes(strict, thought + final)
    assert not takes(required, thought + final)
    assert not takes(strict, thought + call.replace("clock", "fly"))
    thinking = Reading(tools=TOOLS, in_reasoning=True)
    assert takes(
        call_constraint(dialect, TOOL_LIST, thinking, required=True, single=False),
        "Hm.<|end|><|start|>assistant" + call,
    )
    assert (
        call_constraint(dialect, TOOL_LIST, Reading(tools=TOOLS, reads_reasoning=False), required=True, single=True)
        is None
    )
    opens, opening = before_content(dialect, reading)
    assert not opens
    assert takes(StructuredSpec.choice(["Noon."], after=opening), final)
    assert not takes(StructuredSpec.choice(["Noon."], after=opening), final + "!")
    assert before_content(dialect, Reading(tools={}, reads_reasoning=False)) == ("", "")
