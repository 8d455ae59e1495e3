from __future__ import annotations

from dialect_cases import Case, reasoning_cells, text_cells

B, E = "<minimax:tool_call>\n", "</minimax:tool_call>"
ROME = ("weather", '{"city": "Rome"}', True)


def invoke(name: str, **values: str) -> str:
    parts = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in values.items())
    return f'<invoke name="{name}">\n{parts}</invoke>\n'


WHOLE = f"{B}{invoke('weather', city='Rome')}{E}"
FLY = f"{B}{invoke('fly', to='Rome')}{E}"
CODE = "</minimax:tool_call></invoke><invoke name="

CASES = {
    "unfinished_call": Case(
        text=f'Well.\n{B}<invoke name="weather">\n<parameter name="city">Ro</para',
        content="Well.",
        calls=(("weather", '{"city": "Ro</para', False),),
    ),
    "unfinished_name": Case(text=f'{B}<invoke name="wea', content=f'{B}<invoke name="wea'),
    "bad_payload": Case(
        text=f'{B}<invoke name="weather">\n<parameter name="city">Rome</parameter>\ndays: 3\n</invoke>\n{E}',
        content=f"\ndays: 3\n</invoke>\n{E}",
        calls=(("weather", '{"city": "Rome"', False),),
    ),
    "bad_payload_before_name": Case(text=f"{B}weather(Rome)\n{E}", content=f"{B}weather(Rome)\n{E}"),
    "unknown_tool": Case(text=FLY, content=FLY),
    # A value that its schema does not permit is the string that the model wrote.
    "wrong_types": Case(
        text=f"{B}{invoke('weather', city='5', days='soon', detail='[1]')}{E}",
        calls=(("weather", '{"city": "5", "days": "soon", "detail": "[1]"}', True),),
    ),
    "marker_in_string": Case(
        text=f"{B}{invoke('note', text=CODE)}{E}", calls=(("note", f'{{"text": "{CODE}"}}', True),)
    ),
    "marker_cut_at_end": Case(text="So <minimax:to", content="So <minimax:to"),
    "call_after_broken_call": Case(
        text=f'{B}<invoke name="fly">\n</invoke>\n{invoke("weather", city="Rome")}{E}',
        content=f'{B}<invoke name="fly">\n</invoke>',
        calls=(ROME,),
    ),
    "text_after_call": Case(text=f"{WHOLE}\nDone.", content="\nDone.", calls=(ROME,)),
    "no_end_marker": Case(text=WHOLE.removesuffix(E), calls=(ROME,)),
    "empty_arguments": Case(text=f"{B}{invoke('clock')}{E}", calls=(("clock", "{}", True),)),
    "control_characters": Case(
        text=f"{B}{invoke('note', text='a' + chr(10) + chr(9) + 'b')}{E}",
        calls=(("note", '{"text": "a\\n\\tb"}', True),),
    ),
    "unfinished_reasoning": Case(text="Hm, \n", in_reasoning=True, reasoning="Hm, \n"),
    "call_inside_reasoning": Case(text=f"{WHOLE}</think>\n\nNo.", in_reasoning=True, content="No.", calls=(ROME,)),
}
CASES |= reasoning_cells("<think>", "</think>", B)
CASES |= text_cells(
    lambda name, **values: f"{B}{invoke(name, **values)}{E}", "</parameter>", B.strip(), '<invoke name="'
)


def long_call(text: str) -> str:
    return f"{B}{invoke('note', text=text)}{E}"
