from __future__ import annotations

from dialect_cases import Case, json_cells, object_call, reasoning_cells

B, E = "[TOOL_CALLS][", "]"
WHOLE = f'{B}{{"name": "weather", "arguments": {{"city": "Rome"}}}}{E}'
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(
        text=f'Well.{B}{{"name": "weather", "arguments": {{"city": "Ro',
        content="Well.",
        calls=(("weather", '{"city": "Ro', False),),
    ),
    "unfinished_name": Case(text=f'{B}{{"name": "wea', content=f'{B}{{"name": "wea'),
    # Nothing marks the end of calls, so what is left of a broken one is content, and reading goes on.
    "bad_payload": Case(
        text=f'{B}{{"name": "weather", "arguments": {{"city": Rome}}}}{E} Sorry.',
        content=f"Rome}}}}{E} Sorry.",
        calls=(("weather", '{"city": ', False),),
    ),
    "bad_payload_before_name": Case(text=f"{B}weather(Rome){E}", content=f"{B}weather(Rome){E}"),
    "unknown_tool": Case(
        text=f'{B}{{"name": "fly", "arguments": {{"to": "Rome"}}}}{E}',
        content=f'{B}{{"name": "fly", "arguments": {{"to": "Rome"}}}}{E}',
    ),
    "wrong_types": Case(
        text=f'{B}{{"name": "weather", "arguments": {{"city": 5, "days": "x"}}}}{E}',
        calls=(("weather", '{"city": 5, "days": "x"}', True),),
    ),
    "marker_in_string": Case(
        text=f'{B}{{"name": "note", "arguments": {{"text": "[TOOL_CALLS][ARGS][THINK]"}}}}{E}',
        calls=(("note", '{"text": "[TOOL_CALLS][ARGS][THINK]"}', True),),
    ),
    "marker_cut_at_end": Case(text="So [TOOL_CA", content="So [TOOL_CA"),
    "call_after_broken_call": Case(text=f'{B}{{"name": }}{E}{WHOLE}', content=f'{B}{{"name": }}{E}', calls=(ROME,)),
    "text_after_call": Case(text=f"{WHOLE}\nDone.", content="\nDone.", calls=(ROME,)),
    "no_end_marker": Case(text=WHOLE.removesuffix(E), calls=(ROME,)),
    "empty_arguments": Case(text=f'{B}{{"name": "clock", "arguments": null}}{E}', calls=(("clock", "{}", True),)),
    "control_characters": Case(
        text=f'{B}{{"name": "note", "arguments": {{"text": "a\n\tb"}}}}{E}',
        calls=(("note", '{"text": "a\\n\\tb"}', True),),
    ),
    "unfinished_reasoning": Case(text="[THINK]Hm, \n", reasoning="Hm, \n"),
    "call_inside_reasoning": Case(text=f"{WHOLE}[/THINK]No.", in_reasoning=True, content="No.", calls=(ROME,)),
}
CASES |= json_cells(object_call(B, E), "[TOOL_CALLS]") | reasoning_cells("[THINK]", "[/THINK]", B)
CASES["no_arguments"] = Case(text=f'{B}{{"name": "clock"}}{E}', calls=(("clock", "{}", True),))


def long_call(text: str) -> str:
    return f'{B}{{"name": "note", "arguments": {{"text": "{text}"}}}}{E}'
