from __future__ import annotations

from dialect_cases import Case, json_cells, object_call, reasoning_cells

B, E = "<|tool_call|>", "<|/tool_call|>"
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
WHOLE = f"{B}[{CALL}]{E}"
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(
        text=f'Well.{B}[{{"name": "weather", "arguments": {{"city": "Ro',
        content="Well.",
        calls=(("weather", '{"city": "Ro', False),),
    ),
    "unfinished_name": Case(text=f'{B}[{{"name": "wea', content=f'{B}[{{"name": "wea'),
    "bad_payload": Case(
        text=f'{B}[{{"name": "weather", "arguments": {{"city": Rome}}}}]{E} Sorry.',
        content=f"Rome}}}}]{E} Sorry.",
        calls=(("weather", '{"city": ', False),),
    ),
    "bad_payload_before_name": Case(text=f"{B}weather(Rome){E}", content=f"{B}weather(Rome){E}"),
    "unknown_tool": Case(
        text=f'{B}[{{"name": "fly", "arguments": {{}}}}]{E}', content=f'{B}[{{"name": "fly", "arguments": {{}}}}]{E}'
    ),
    # JSON says its types itself: validation is the caller's.
    "wrong_types": Case(
        text=f'{B}[{{"name": "weather", "arguments": {{"city": 5, "days": "x"}}}}]{E}',
        calls=(("weather", '{"city": 5, "days": "x"}', True),),
    ),
    "marker_in_string": Case(
        text=f'{B}[{{"name": "note", "arguments": {{"text": "]<|/tool_call|>functools["}}}}]{E}',
        calls=(("note", '{"text": "]<|/tool_call|>functools["}', True),),
    ),
    "marker_cut_at_end": Case(text="So functo", content="So functo"),
    "call_after_broken_call": Case(text=f"{B}oops{E}{WHOLE}", content=f"{B}oops{E}", calls=(ROME,)),
    "text_after_call": Case(text=f"{WHOLE}\nDone.", content="\nDone.", calls=(ROME,)),
    "no_end_marker": Case(text=WHOLE.removesuffix(E), calls=(ROME,)),
    "empty_arguments": Case(text=f'{B}[{{"name": "clock"}}]{E}', calls=(("clock", "{}", True),)),
    "control_characters": Case(
        text=f'{B}[{{"name": "note", "arguments": {{"text": "a\n\tb"}}}}]{E}',
        calls=(("note", '{"text": "a\\n\\tb"}', True),),
    ),
    "unfinished_reasoning": Case(text="<think>Hm, \n", reasoning="Hm, \n"),
    "call_inside_reasoning": Case(text=f"<think>{WHOLE}</think>No.", reasoning=WHOLE, content="No."),
}
CASES |= json_cells(object_call(f"{B}[", f"]{E}"), B, "functools[") | reasoning_cells("<think>", "</think>", B)
CASES["no_arguments"] = CASES["empty_arguments"]


def long_call(text: str) -> str:
    return f'{B}[{{"name": "note", "arguments": {{"text": "{text}"}}}}]{E}'
