from __future__ import annotations

from dialect_cases import Case, json_cells, reasoning_cells

B, E = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
C, A, D = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>"


def call(name: str, arguments: str) -> str:
    return f"{B}{C}{name}{A}{arguments}{D}{E}"


WHOLE = call("weather", '{"city": "Rome"}')
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(
        text=f'Well.{B}{C}weather{A}{{"city": "Ro', content="Well.", calls=(("weather", '{"city": "Ro', False),)
    ),
    "unfinished_name": Case(text=f"{B}{C}wea", content=f"{B}{C}wea"),
    # The rest of the broken call is content up to its end; the end of the section stays behind.
    "bad_payload": Case(
        text=call("weather", '{"city": Rome}') + " Sorry.",
        content=f"Rome}}{D}{E} Sorry.",
        calls=(("weather", '{"city": ', False),),
    ),
    "bad_payload_before_name": Case(text=f"{B}{C}weather(Rome){D}{E}", content=f"{B}{C}weather(Rome){D}{E}"),
    "unknown_tool": Case(text=call("fly", '{"to": "Rome"}'), content=call("fly", '{"to": "Rome"}')),
    "wrong_types": Case(
        text=call("weather", '{"city": 5, "days": "x"}'), calls=(("weather", '{"city": 5, "days": "x"}', True),)
    ),
    "marker_in_string": Case(
        text=call("note", f'{{"text": "{E}{B}<think>```"}}'), calls=(("note", f'{{"text": "{E}{B}<think>```"}}', True),)
    ),
    "marker_cut_at_end": Case(text=f"So {B[:9]}", content=f"So {B[:9]}"),
    # The next call of the same section is read.
    "call_after_broken_call": Case(
        text=f'{B}{C}weather{A}Rome{D}{C}weather{A}{{"city": "Rome"}}{D}{E}',
        content=f"{B}{C}weather{A}Rome{D}",
        calls=(ROME,),
    ),
    "text_after_call": Case(text=f"{WHOLE}\nDone.", content="\nDone.", calls=(ROME,)),
    "no_end_marker": Case(text=WHOLE.removesuffix(E), calls=(ROME,)),
    "empty_arguments": Case(text=call("clock", "null"), calls=(("clock", "{}", True),)),
    "control_characters": Case(
        text=call("note", '{"text": "a\n\tb"}'), calls=(("note", '{"text": "a\\n\\tb"}', True),)
    ),
    "unfinished_reasoning": Case(text="<think>\nHm, \n", reasoning="Hm, \n"),
    "call_inside_reasoning": Case(text=f"{WHOLE}</think>\n\nNo.", in_reasoning=True, reasoning=WHOLE, content="No."),
}
CASES |= json_cells(call, B, "<｜tool▁call▁begin｜>") | reasoning_cells("<think>", "</think>", B)
CASES["no_arguments"] = Case(text=call("clock", ""), calls=(("clock", "{}", True),))


def long_call(text: str) -> str:
    return call("note", f'{{"text": "{text}"}}')
