from __future__ import annotations

from dialect_cases import Case, json_cells, reasoning_cells

B, A = "[TOOL_CALLS]", "[ARGS]"
WHOLE = f'{B}weather{A}{{"city": "Rome"}}'
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(
        text=f'Well.{B}weather{A}{{"city": "Ro', content="Well.", calls=(("weather", '{"city": "Ro', False),)
    ),
    "unfinished_name": Case(text=f"{B}wea", content=f"{B}wea"),
    "bad_payload": Case(
        text=f'{B}weather{A}{{"city": Rome}} Sorry.', content="Rome} Sorry.", calls=(("weather", '{"city": ', False),)
    ),
    "bad_payload_before_name": Case(text=f"{B}weather(Rome)", content=f"{B}weather(Rome)"),
    "unknown_tool": Case(text=f'{B}fly{A}{{"to": "Rome"}}', content=f'{B}fly{A}{{"to": "Rome"}}'),
    "wrong_types": Case(
        text=f'{B}weather{A}{{"city": 5, "days": "x"}}', calls=(("weather", '{"city": 5, "days": "x"}', True),)
    ),
    "marker_in_string": Case(
        text=f'{B}note{A}{{"text": "[TOOL_CALLS][ARGS][THINK]"}}',
        calls=(("note", '{"text": "[TOOL_CALLS][ARGS][THINK]"}', True),),
    ),
    "marker_cut_at_end": Case(text="So [TOOL_CA", content="So [TOOL_CA"),
    "call_after_broken_call": Case(text=f"{B}weather{A}Rome{WHOLE}", content=f"{B}weather{A}Rome", calls=(ROME,)),
    "text_after_call": Case(text=f"{WHOLE}\nDone.", content="\nDone.", calls=(ROME,)),
    "no_end_marker": "There is no end marker.",
    "empty_arguments": Case(text=f"{B}clock{A}null", calls=(("clock", "{}", True),)),
    "control_characters": Case(text=f'{B}note{A}{{"text": "a\n\tb"}}', calls=(("note", '{"text": "a\\n\\tb"}', True),)),
    "unfinished_reasoning": Case(text="[THINK]Hm, \n", reasoning="Hm, \n"),
    "call_inside_reasoning": Case(text=f"{WHOLE}[/THINK]No.", in_reasoning=True, content="No.", calls=(ROME,)),
}
CASES |= json_cells(lambda name, arguments: f"{B}{name}{A}{arguments}", B) | reasoning_cells("[THINK]", "[/THINK]", B)
# Nothing stands behind arguments, so they may be still to come.
CASES["no_arguments"] = Case(text=f"{B}clock{A}", content=f"{B}clock{A}")


def long_call(text: str) -> str:
    return f'{B}note{A}{{"text": "{text}"}}'
