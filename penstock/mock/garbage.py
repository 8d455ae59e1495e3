"""Broken tool calls of each dialect: what a model that lost the thread writes. Knows markers, parses nothing.

Every dialect has the same kinds of damage, in this order: a call that is cut off, arguments that are no JSON (or have
no end), a tool that nobody offered, an end without a beginning, and a marker that the text stops in the midst of.
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
    "pythonic": _broken("[", "]", 'no_such_tool(city="Paris")', 'get_weather(city="Par', "get_weather(city=Paris,,)"),
    "mistral": _broken("[TOOL_CALLS]", "", f"[{_JSON_CALL}]", f"[{_JSON_CUT}", f"[{_JSON_BAD}]"),
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
    "glm": _broken(
        "<tool_call>",
        "</tool_call>",
        "no_such_tool\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n",
        "get_weather\n<arg_key>city</arg_key>\n<arg_value>Par",
        "get_weather\n<arg_key>city\n<arg_value>Paris</arg_value>\n",
    ),
    "minimax_m2": _broken(
        "<minimax:tool_call>\n",
        "</minimax:tool_call>",
        '<invoke name="no_such_tool">\n<parameter name="city">Paris</parameter>\n</invoke>\n',
        '<invoke name="get_weather">\n<parameter name="city">Par',
        '<invoke name="get_weather>\n<parameter name=city>Paris</invoke>\n',
    ),
    "harmony": _broken(
        "<|channel|>commentary to=functions.",
        "<|call|>",
        'no_such_tool <|constrain|>json<|message|>{"city": "Paris"}',
        'get_weather <|constrain|>json<|message|>{"city": "Par',
        'get_weather <|constrain|>json<|message|>{"city": Paris,,}',
    ),
}
