"""Broken output in dialects of the frontend's table: what a model that lost the thread writes. Knows markers, parses
nothing.

Calls are damaged in the same ways in every dialect, in this order: a call that is cut off, arguments that are no JSON
(or have no end), a tool that nobody offered, an end without a beginning, and a marker that the text stops in the midst
of. A dialect without calls has broken reasoning.
"""

from __future__ import annotations


def _broken(opening: str, closing: str, call: str, cut_call: str, bad_call: str) -> tuple[str, ...]:
    """``call`` names an unknown tool and is whole, ``cut_call`` stops early, ``bad_call`` has broken arguments."""
    return (
        f"Let me look. {opening}{cut_call}",
        f"Let me look. {opening}{bad_call}{closing} Done.",
        f"Let me look. {opening}{call}{closing}",
        f"Nothing to do.{closing} The end.",
        f"Let me look. {opening[: len(opening) // 2]}",
    )


_JSON_CALL = '{"name": "no_such_tool", "arguments": {"city": "Paris"}}'
_JSON_CUT = '{"name": "get_weather", "arguments": {"city": "Par'
_JSON_BAD = '{"name": "get_weather", "arguments": {"city": Paris,,}'
_XML_CALL = "<function=no_such_tool>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
_XML_CUT = "<function=get_weather>\n<parameter=city>\nPar"
_XML_BAD = "<function=get_weather>\n<parameter=city\nParis</function>\n"

GARBAGE: dict[str, tuple[str, ...]] = {
    "hermes": _broken("<tool_call>\n", "\n</tool_call>", _JSON_CALL, _JSON_CUT, _JSON_BAD),
    "qwen3_coder": _broken("<tool_call>\n", "</tool_call>", _XML_CALL, _XML_CUT, _XML_BAD),
    "llama3_json": _broken("<|python_tag|>", "", _JSON_CALL, _JSON_CUT, _JSON_BAD),
    "mistral_v7": _broken("[TOOL_CALLS]", "", f"[{_JSON_CALL}]", f"[{_JSON_CUT}", f"[{_JSON_BAD}]"),
    "deepseek_v3": _broken(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        'no_such_tool\n```json\n{"city": "Paris"}\n```',
        'get_weather\n```json\n{"city": "Par',
        'get_weather\n```json\n{"city": Paris,,}\n```',
    ),
    "kimi_k2": _broken(
        "<|tool_calls_section_begin|><|tool_call_begin|>",
        "<|tool_call_end|><|tool_calls_section_end|>",
        'functions.no_such_tool:0<|tool_call_argument_begin|>{"city": "Paris"}',
        'functions.get_weather:0<|tool_call_argument_begin|>{"city": "Par',
        'functions.get_weather:0<|tool_call_argument_begin|>{"city": Paris,,}',
    ),
    "gpt_oss": _broken(
        "<|channel|>commentary to=functions.",
        "<|call|>",
        'no_such_tool <|constrain|>json<|message|>{"city": "Paris"}',
        'get_weather <|constrain|>json<|message|>{"city": "Par',
        'get_weather <|constrain|>json<|message|>{"city": Paris,,}',
    ),
    "llama_pythonic": _broken(
        "<|python_start|>[",
        "]<|python_end|>",
        'no_such_tool(city="Paris")',
        'get_weather(city="Par',
        "get_weather(city=Paris,,)",
    ),
    "think": (
        "Let me think.</think>The answer is</think> four.",
        "<think>Four, because",
        "Four.</think",
        "</think>",
        "<think></think><think>Four.</think>",
    ),
}
