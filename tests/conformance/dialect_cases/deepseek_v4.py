from __future__ import annotations

from dialect_cases import Case, reasoning_cells, text_cells

B, E = "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"
CALL, DONE, P, Q = '<｜DSML｜invoke name="', "</｜DSML｜invoke>", '<｜DSML｜parameter name="', "</｜DSML｜parameter>"


def invoke(name: str, **values: str) -> str:
    parts = "\n".join(f'{P}{key}" string="true">{value}{Q}' for key, value in values.items())
    return f'{CALL}{name}">\n{parts}\n{DONE}'


def call(name: str, **values: str) -> str:
    return f"{B}\n{invoke(name, **values)}\n{E}"


WHOLE = call("weather", city="Rome")
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(
        text=f'Well.\n\n{B}\n{CALL}weather">\n{P}city" string="true">Ro</｜DS',
        content="Well.",
        calls=(("weather", '{"city": "Ro</｜DS', False),),
    ),
    "unfinished_name": Case(text=f"{B}\n{CALL}wea", content=f"{B}\n{CALL}wea"),
    # The rest of the broken call is content up to its end; the end of the block stays behind.
    "bad_payload": Case(
        text=f'{B}\n{CALL}weather">\n{P}days" string="false">three{Q}\n{DONE}\n{E} Sorry.',
        content=f'\n{P}days" string="false">three{Q}\n{DONE}\n{E} Sorry.',
        calls=(("weather", "", False),),
    ),
    "bad_payload_before_name": Case(text=f"{B}\nweather(Rome)\n{E}", content=f"{B}\nweather(Rome)\n{E}"),
    "unknown_tool": Case(text=call("fly", to="Rome"), content=call("fly", to="Rome")),
    # The model says itself what is a string: validation is the caller's.
    "wrong_types": Case(
        text=f'{B}\n{CALL}weather">\n{P}city" string="false">5{Q}\n{P}days" string="true">3{Q}\n{DONE}\n{E}',
        calls=(("weather", '{"city": 5, "days": "3"}', True),),
    ),
    "marker_in_string": Case(
        text=call("note", text=f"{E}{DONE}{B}<think>"), calls=(("note", f'{{"text": "{E}{DONE}{B}<think>"}}', True),)
    ),
    "marker_cut_at_end": Case(text="So <｜DSML｜tool", content="So <｜DSML｜tool"),
    # The next call of the same block is read.
    "call_after_broken_call": Case(
        text=f"{B}\n{CALL}weather Rome{DONE}\n{invoke('weather', city='Rome')}\n{E}",
        content=f"{B}\n{CALL}weather Rome{DONE}\n",
        calls=(ROME,),
    ),
    "text_after_call": Case(text=f"{WHOLE}\nDone.", content="\nDone.", calls=(ROME,)),
    "no_end_marker": Case(text=WHOLE.removesuffix(E), calls=(ROME,)),
    "empty_arguments": Case(text=call("clock"), calls=(("clock", "{}", True),)),
    "control_characters": Case(text=call("note", text="a\n\tb"), calls=(("note", '{"text": "a\\n\\tb"}', True),)),
    "unfinished_reasoning": Case(text="Hm, \n", in_reasoning=True, reasoning="Hm, \n"),
    "call_inside_reasoning": Case(text=f"{WHOLE}</think>No.", in_reasoning=True, content="No.", calls=(ROME,)),
}
CASES |= reasoning_cells("<think>", "</think>", B)
CASES |= text_cells(
    call,
    Q,
    B,
    "<｜DSML｜toolcalls>",
    "<｜DSML｜tool>",
    CALL,
    odd_numbers=Case(
        text=call("clock", x="[-0, 1e400]").replace("true", "false"), calls=(("clock", '{"x": [-0, 1e400]}', True),)
    ),
    # All arguments at once, in a string.
    arguments_as_string=Case(
        text=f'{B}\n{CALL}weather">\n"{{}}"\n{DONE}\n{E}',
        content=f'\n"{{}}"\n{DONE}\n{E}',
        calls=(("weather", "", False),),
    ),
)


def long_call(text: str) -> str:
    return call("note", text=text)
