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


def _named(opening: str, closing: str, between: str, end: str = "", prefix: str = "") -> tuple[str, ...]:
    """Calls that are ``prefix``, a name, ``between`` and JSON, with ``end`` behind it."""
    return _broken(
        opening,
        closing,
        f'{prefix}no_such_tool{between}{{"city": "Paris"}}{end}',
        f'{prefix}get_weather{between}{{"city": "Par',
        f'{prefix}get_weather{between}{{"city": Paris,,}}{end}',
    )


def _tagged(
    opening: str, closing: str, name: tuple[str, str], parameter: tuple[str, str], value_end: str, call_end: str
) -> tuple[str, ...]:
    """Calls with values between tags: ``name`` and ``parameter`` are what stands around the two names. The broken one
    has a parameter whose name has no end."""
    call, city = f"{name[0]}%s{name[1]}", f"{parameter[0]}city{parameter[1]}"
    return _broken(
        opening,
        closing,
        f"{call % 'no_such_tool'}{city}Paris{value_end}{call_end}",
        f"{call % 'get_weather'}{city}Par",
        f"{call % 'get_weather'}{parameter[0]}city{call_end}",
    )


def _function_tags() -> tuple[str, ...]:
    return _tagged(
        "<tool_call>\n",
        "</tool_call>",
        ("<function=", ">\n"),
        ("<parameter=", ">\n"),
        "\n</parameter>\n",
        "</function>\n",
    )


def _pairs(before: tuple[str, str], separator: str, gap: str, suffix: str = "") -> tuple[str, ...]:
    """Keys and values in tags of their own; ``before`` and ``separator`` stand around the name."""
    return _tagged(
        f"{before[0]}<tool_call{suffix}>",
        f"</tool_call{suffix}>{before[1]}",
        ("", f"{separator}{gap}"),
        (f"<arg_key{suffix}>", f"</arg_key{suffix}>{gap}<arg_value{suffix}>"),
        f"</arg_value{suffix}>{gap}",
        "",
    )


def _hunyuan(suffix: str) -> tuple[str, ...]:
    return _pairs((f"<tool_calls{suffix}>\n", f"\n</tool_calls{suffix}>"), f"<tool_sep{suffix}>", "\n", suffix)


def _dsml(block: str) -> tuple[str, ...]:
    return _tagged(
        f"\n\n<｜DSML｜{block}>\n",
        f"</｜DSML｜{block}>",
        ('<｜DSML｜invoke name="', '">\n'),
        ('<｜DSML｜parameter name="', '" string="true">'),
        "</｜DSML｜parameter>\n",
        "</｜DSML｜invoke>\n",
    )


GARBAGE: dict[str, tuple[str, ...]] = {
    "step3_5": _function_tags(),
    "qwen3_coder": _function_tags(),
    "glm4_5": _pairs(("", ""), "", "\n"),
    "glm4_7": _pairs(("", ""), "", ""),
    "minimax_m1": _broken("<tool_calls>\n", "\n</tool_calls>", _JSON_CALL, _JSON_CUT, _JSON_BAD),
    "minimax_m2": _tagged(
        "<minimax:tool_call>\n",
        "</minimax:tool_call>",
        ('<invoke name="', '">\n'),
        ('<parameter name="', '">'),
        "</parameter>\n",
        "</invoke>\n",
    ),
    "minimax_m3": _tagged(
        "]<]minimax[>[<tool_call>\n",
        "]<]minimax[>[</tool_call>",
        (']<]minimax[>[<invoke name="', '">'),
        ("]<]minimax[>[<", ">"),
        "]<]minimax[>[</city>",
        "]<]minimax[>[</invoke>\n",
    ),
    "minicpm5": _tagged('<function name="', "", ("", '">'), ('<param name="', '">'), "</param>", "</function>"),
    "gemma4": _broken(
        "<|tool_call>call:",
        "<tool_call|>",
        'no_such_tool{city:<|"|>Paris<|"|>}',
        'get_weather{city:<|"|>Par',
        "get_weather{city:Paris,,}",
    ),
    "granite": _broken("<|tool_call|>", "", f"[{_JSON_CALL}]", f"[{_JSON_CUT}", f"[{_JSON_BAD}]"),
    "phi4": _broken("<|tool_call|>", "<|/tool_call|>", f"[{_JSON_CALL}]", f"[{_JSON_CUT}", f"[{_JSON_BAD}]"),
    "hy_v3": _hunyuan(":opensource"),
    "hy_v3_preview": _hunyuan(""),
    "hermes": _broken("<tool_call>\n", "\n</tool_call>", _JSON_CALL, _JSON_CUT, _JSON_BAD),
    "mistral_v7": _broken("[TOOL_CALLS]", "", f"[{_JSON_CALL}]", f"[{_JSON_CUT}", f"[{_JSON_BAD}]"),
    "mistral_v11": _named("[TOOL_CALLS]", "", "[CALL_ID]a1b2c3d4e[ARGS]"),
    "mistral_v13": _named("[TOOL_CALLS]", "", "[ARGS]"),
    "deepseek_v3": _named(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "\n```json\n",
        "\n```",
    ),
    "deepseek_v31": _named(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "<｜tool▁sep｜>"
    ),
    "deepseek_v32": _dsml("function_calls"),
    "deepseek_v4": _dsml("tool_calls"),
    "kimi_k2": _named(
        "<|tool_calls_section_begin|><|tool_call_begin|>",
        "<|tool_call_end|><|tool_calls_section_end|>",
        ":0<|tool_call_argument_begin|>",
        prefix="functions.",
    ),
    "gpt_oss": _named("<|channel|>commentary to=functions.", "<|call|>", " <|constrain|>json<|message|>"),
    "llama3_json": _broken("<|python_tag|>", "", _JSON_CALL, _JSON_CUT, _JSON_BAD),
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
