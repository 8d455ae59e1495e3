from __future__ import annotations

from dialect_cases import Case, json_cells, object_call, reasoning_cells

B = "<|tool_call|>"
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(
        text=f'Well.\n{B}[{{"name": "weather", "arguments": {{"city": "Ro',
        content="Well.",
        calls=(("weather", '{"city": "Ro', False),),
    ),
    "unfinished_name": Case(text=f'{B}[{{"name": "wea', content=f'{B}[{{"name": "wea'),
    "bad_payload": Case(
        text=f'{B}[{{"name": "weather", "arguments": {{"city": Rome}}}}] Sorry.',
        content="Rome}}] Sorry.",
        calls=(("weather", '{"city": ', False),),
    ),
    "bad_payload_before_name": Case(text=f"{B}weather(Rome)", content=f"{B}weather(Rome)"),
    "unknown_tool": Case(
        text=f'{B}[{{"name": "fly", "arguments": {{}}}}]', content=f'{B}[{{"name": "fly", "arguments": {{}}}}]'
    ),
    # JSON says its types itself: validation is the caller's.
    "wrong_types": Case(
        text=f'{B}[{{"name": "weather", "arguments": {{"city": 5, "days": "x"}}}}]',
        calls=(("weather", '{"city": 5, "days": "x"}', True),),
    ),
    "marker_in_string": Case(
        text=f'{B}[{{"name": "note", "arguments": {{"text": "]<|tool_call|></response>"}}}}]',
        calls=(("note", '{"text": "]<|tool_call|></response>"}', True),),
    ),
    "marker_cut_at_end": Case(text="So <|tool_ca", content="So <|tool_ca"),
    "call_after_broken_call": Case(text=f"{B}oops\n{B}[{CALL}]", content=f"{B}oops", calls=(ROME,)),
    "text_after_call": Case(text=f"{B}[{CALL}]\nDone.", content="\nDone.", calls=(ROME,)),
    "no_end_marker": "There is no end marker.",
    "empty_arguments": Case(text=f'{B}[{{"name": "clock"}}]', calls=(("clock", "{}", True),)),
    "control_characters": Case(
        text=f'{B}[{{"name": "note", "arguments": {{"text": "a\n\tb"}}}}]',
        calls=(("note", '{"text": "a\\n\\tb"}', True),),
    ),
    "unfinished_reasoning": Case(text="<think>Hm, \n", reasoning="Hm, \n"),
    "call_inside_reasoning": Case(
        text=f"<think>{B}[{CALL}]</think>\n<response>No.</response>", reasoning=f"{B}[{CALL}]", content="No."
    ),
}
CASES |= json_cells(object_call(f"{B}[", "]"), B, "<tool_call>") | reasoning_cells("<think>", "</think>", B)
CASES["no_arguments"] = CASES["empty_arguments"]


def long_call(text: str) -> str:
    return f'{B}[{{"name": "note", "arguments": {{"text": "{text}"}}}}]'
