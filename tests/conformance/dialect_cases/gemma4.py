from __future__ import annotations

import json

from dialect_cases import FOX, LONG_NAME, Case, around_cells, reasoning_cells

B, E, Q = "<|tool_call>call:", "<tool_call|>", '<|"|>'
WHOLE = f"{B}weather{{city:{Q}Rome{Q}}}{E}"
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(
        text=f"Well.{B}weather{{city:{Q}Ro<|", content="Well.", calls=(("weather", '{"city": "Ro<|', False),)
    ),
    "unfinished_name": Case(text=f"{B}wea", content=f"{B}wea"),
    "bad_payload": Case(
        text=f"{B}weather{{city:Rome}}{E} Sorry.",
        content=f"Rome}}{E} Sorry.",
        calls=(("weather", '{"city": ', False),),
    ),
    "bad_payload_before_name": Case(text=f"<|tool_call>weather(Rome){E}", content=f"<|tool_call>weather(Rome){E}"),
    "unknown_tool": Case(text=f"{B}fly{{to:{Q}Rome{Q}}}{E}", content=f"{B}fly{{to:{Q}Rome{Q}}}{E}"),
    # The notation says its types itself: validation is the caller's.
    "wrong_types": Case(
        text=f"{B}weather{{city:5,days:{Q}x{Q}}}{E}", calls=(("weather", '{"city": 5, "days": "x"}', True),)
    ),
    "marker_in_string": Case(
        text=f"{B}note{{text:{Q}}}<tool_call|><|tool_call>,{{}}<|channel>{Q}}}{E}",
        calls=(("note", '{"text": "}<tool_call|><|tool_call>,{}<|channel>"}', True),),
    ),
    "marker_cut_at_end": Case(text="So <|tool_ca", content="So <|tool_ca"),
    "call_after_broken_call": Case(text=f"{B}{E}{WHOLE}", content=f"{B}{E}", calls=(ROME,)),
    "text_after_call": Case(text=f"{WHOLE}Done.", content="Done.", calls=(ROME,)),
    "no_end_marker": Case(text=WHOLE.removesuffix(E), calls=(ROME,)),
    "empty_arguments": Case(text=f"{B}clock{{}}{E}", calls=(("clock", "{}", True),)),
    "control_characters": Case(
        text=f"{B}note{{text:{Q}a\n\tb{Q}}}{E}", calls=(("note", '{"text": "a\\n\\tb"}', True),)
    ),
    "unfinished_reasoning": Case(text="<|channel>thought\nHm, \n", reasoning="Hm, \n"),
    "call_inside_reasoning": Case(text=f"<|channel>thought\n{WHOLE}\n<channel|>No.", content="No.", calls=(ROME,)),
}
CASES |= around_cells(WHOLE, "<|tool_call>") | reasoning_cells("<|channel>thought\n", "<channel|>", B)
CASES |= {
    "carriage_returns": Case(text=f"{B}weather{{\r\ncity:{Q}Rome{Q}\r\n}}{E}", calls=(ROME,)),
    "no_arguments": Case(text=f"{B}clock{E}", content=f"{B}clock{E}"),
    "arguments_as_string": Case(
        text=f"{B}clock{{{Q}{{}}{Q}}}{E}", content=f"{Q}{{}}{Q}}}{E}", calls=(("clock", "", False),)
    ),
    "duplicate_keys": Case(
        text=f"{B}note{{text:{Q}a{Q},text:{Q}b{Q}}}{E}",
        content=f",text:{Q}b{Q}}}{E}",
        calls=(("note", '{"text": "a"', False),),
    ),
    "odd_numbers": Case(text=f"{B}clock{{x:[-0,1e400]}}{E}", calls=(("clock", '{"x": [-0, 1e400]}', True),)),
    "leading_zero": Case(
        text=f"{B}weather{{days:01}}{E}", content=f"01}}{E}", calls=(("weather", '{"days": ', False),)
    ),
    # Nothing is escaped here, so a backslash is one.
    "surrogate_pair": Case(text=f"{B}note{{text:{Q}{FOX}{Q}}}{E}", calls=(("note", json.dumps({"text": FOX}), True),)),
    "lone_surrogate": Case(
        text=f'{B}note{{"{FOX[:6]}":1}}{E}', content=f'"{FOX[:6]}":1}}{E}', calls=(("note", "", False),)
    ),
    "long_name": Case(text=f"{B}{LONG_NAME}{{}}{E}", content=f"{B}{LONG_NAME}{{}}{E}"),
}


def long_call(text: str) -> str:
    return f"{B}note{{text:{Q}{text}{Q}}}{E}"
