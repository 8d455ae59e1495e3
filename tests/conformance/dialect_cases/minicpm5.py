from __future__ import annotations

from dialect_cases import Case, reasoning_cells, text_cells


def call(name: str, **values: str) -> str:
    parts = "".join(f'<param name="{key}">{value}</param>' for key, value in values.items())
    return f'<function name="{name}">{parts}</function>'


WHOLE = call("weather", city="Rome")
ROME = ("weather", '{"city": "Rome"}', True)
CODE = "</param></function><function name="

CASES = {
    "unfinished_call": Case(
        text='Well.\n<function name="weather"><param name="city">Ro</par',
        content="Well.",
        calls=(("weather", '{"city": "Ro</par', False),),
    ),
    "unfinished_name": Case(text='<function name="wea', content='<function name="wea'),
    "bad_payload": Case(
        text='<function name="weather"><param name="city">Rome</param><param>3</param></function> Sorry.',
        content="<param>3</param></function> Sorry.",
        calls=(("weather", '{"city": "Rome"', False),),
    ),
    "bad_payload_before_name": Case(
        text="<function name=weather>Rome</function>", content="<function name=weather>Rome</function>"
    ),
    "unknown_tool": Case(text=call("fly", to="Rome"), content=call("fly", to="Rome")),
    # A value that its schema does not permit is the string that the model wrote.
    "wrong_types": Case(
        text=call("weather", city="5", days="soon", detail="[1]"),
        calls=(("weather", '{"city": "5", "days": "soon", "detail": "[1]"}', True),),
    ),
    "marker_in_string": Case(
        text=call("note", text=f"<![CDATA[{CODE}]]>"), calls=(("note", f'{{"text": "{CODE}"}}', True),)
    ),
    "marker_cut_at_end": Case(text="So <function na", content="So <function na"),
    "call_after_broken_call": Case(
        text=f'<function name="oops">\n</function>\n{WHOLE}',
        content='<function name="oops">\n</function>',
        calls=(ROME,),
    ),
    "text_after_call": Case(text=f"{WHOLE}\nDone.", content="\nDone.", calls=(ROME,)),
    # Another parameter might have followed.
    "no_end_marker": Case(text=WHOLE.removesuffix("</function>"), calls=(("weather", '{"city": "Rome"', False),)),
    "empty_arguments": Case(text=call("clock"), calls=(("clock", "{}", True),)),
    "control_characters": Case(text=call("note", text="a\n\tb"), calls=(("note", '{"text": "a\\n\\tb"}', True),)),
    "unfinished_reasoning": Case(text="<think>\nHm, \n", reasoning="Hm, \n"),
    "call_inside_reasoning": Case(text=f"{WHOLE}</think>\n\nNo.", in_reasoning=True, reasoning=WHOLE, content="No."),
}
CASES |= text_cells(call, "</param>", "<function name=", "<functionname=") | reasoning_cells(
    "<think>", "</think>", "<function name="
)


def long_call(text: str) -> str:
    return call("note", text=text)
