from __future__ import annotations

from dialect_cases import ROME, Case, reasoning_cells, text_cells

M = "]<]minimax[>["
B, E = f"{M}<tool_call>\n", f"{M}</tool_call>"


def invoke(name: str, **values: str) -> str:
    parts = "".join(f"{M}<{key}>{value}{M}</{key}>" for key, value in values.items())
    return f'{M}<invoke name="{name}">{parts}{M}</invoke>\n'


def call(name: str, **values: str) -> str:
    return f"{B}{invoke(name, **values)}{E}"


WHOLE = call("weather", city="Rome")
FLY = call("fly", to="Rome")
CODE = "</text></invoke></tool_call>]<]mini"

CASES = {
    "unfinished_call": Case(
        text=f'Well.{B}{M}<invoke name="weather">{M}<city>Ro]<]mini',
        content="Well.",
        calls=(("weather", '{"city": "Ro]<]mini', False),),
    ),
    "unfinished_name": Case(text=f'{B}{M}<invoke name="wea', content=f'{B}{M}<invoke name="wea'),
    # An end tag that ends something else.
    "bad_payload": Case(
        text=f'{B}{M}<invoke name="weather">{M}<city>Rome{M}</days>{M}</invoke>\n{E} Sorry.',
        content=f"{M}</days>{M}</invoke>\n{E} Sorry.",
        calls=(("weather", '{"city": "Rome', False),),
    ),
    "bad_payload_before_name": Case(text=f"{B}weather(Rome)\n{E}", content=f"{B}weather(Rome)\n{E}"),
    "unknown_tool": Case(text=FLY, content=FLY),
    # A value that its schema does not permit is the string that the model wrote.
    "wrong_types": Case(
        text=call("weather", city="5", days="soon", detail=f"{M}<item>1{M}</item>"),
        calls=(("weather", '{"city": "5", "days": "soon", "detail": {"item": 1}}', True),),
    ),
    # The mark alone cannot stand in a string.
    "marker_in_string": Case(text=call("note", text=CODE), calls=(("note", f'{{"text": "{CODE}"}}', True),)),
    "marker_cut_at_end": Case(text="So ]<]minimax[>[<tool_", content="So ]<]minimax[>[<tool_"),
    "call_after_broken_call": Case(
        text=f"{B}{invoke('fly')}{invoke('weather', city='Rome')}{E}", content=f"{B}{invoke('fly')}", calls=(ROME,)
    ),
    "text_after_call": Case(text=f"{WHOLE}\nDone.", content="\nDone.", calls=(ROME,)),
    "no_end_marker": Case(text=WHOLE.removesuffix(E), calls=(ROME,)),
    "empty_arguments": Case(text=call("clock"), calls=(("clock", "{}", True),)),
    "control_characters": Case(text=call("note", text="a\n\tb"), calls=(("note", '{"text": "a\\n\\tb"}', True),)),
    "unfinished_reasoning": Case(text="<mm:think>Hm, \n", reasoning="Hm, \n"),
    "call_inside_reasoning": Case(text=f"<mm:think>{WHOLE}</mm:think>No.", reasoning=WHOLE, content="No."),
}
CASES |= reasoning_cells("<mm:think>", "</mm:think>", B) | text_cells(
    call, f"{M}</text>", B.strip(), f'{M}<invoke name="'
)
# A key is written before its value is read.
CASES["duplicate_keys"] = Case(
    text=f'{B}{M}<invoke name="note">{M}<text>a{M}</text>{M}<text>b{M}</text>{M}</invoke>\n{E}',
    content=f"{M}<text>b{M}</text>{M}</invoke>\n{E}",
    calls=(("note", '{"text": "a"', False),),
)


def long_call(text: str) -> str:
    return call("note", text=text)
