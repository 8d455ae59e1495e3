from __future__ import annotations

from dialect_cases import Case, reasoning_cells, text_cells

B, E = "<tool_call>\n", "\n</tool_call>"


def call(name: str, **values: str) -> str:
    parts = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"{B}<function={name}>\n{parts}</function>{E}"


WHOLE = call("weather", city="Rome")
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(
        text=f"Well.\n\n{B}<function=weather>\n<parameter=city>\nRo\n</para",
        content="Well.",
        calls=(("weather", '{"city": "Ro\\n</para', False),),
    ),
    "unfinished_name": Case(text=f"{B}<function=wea", content=f"{B}<function=wea"),
    "bad_payload": Case(
        text=f"{B}<function=weather>\n<parameter=city>\nRome\n</parameter>\ndays: 3\n</function>{E}",
        content=f"\ndays: 3\n</function>{E}",
        calls=(("weather", '{"city": "Rome"', False),),
    ),
    "bad_payload_before_name": Case(text=f"{B}weather(Rome){E}", content=f"{B}weather(Rome){E}"),
    "unknown_tool": Case(text=call("fly", to="Rome"), content=call("fly", to="Rome")),
    # A value that its schema does not permit is the string that the model wrote.
    "wrong_types": Case(
        text=call("weather", city="5", days="soon", detail="[1]"),
        calls=(("weather", '{"city": "5", "days": "soon", "detail": "[1]"}', True),),
    ),
    "marker_in_string": Case(
        text=call("note", text="</tool_call><function=x><parameter=y></function>"),
        calls=(("note", '{"text": "</tool_call><function=x><parameter=y></function>"}', True),),
    ),
    "marker_cut_at_end": Case(text="So <function", content="So <function"),
    # The template puts two newlines between content and a call; the one here is content.
    "call_after_broken_call": Case(text=f"{B}oops{E}\n{WHOLE}", content=f"{B}oops{E}\n", calls=(ROME,)),
    "text_after_call": Case(text=f"{WHOLE}\nDone.", content="\nDone.", calls=(ROME,)),
    "no_end_marker": Case(text=WHOLE.removesuffix(E), calls=(ROME,)),
    "empty_arguments": Case(text=call("clock"), calls=(("clock", "{}", True),)),
    "control_characters": Case(text=call("note", text="a\n\tb"), calls=(("note", '{"text": "a\\n\\tb"}', True),)),
    "unfinished_reasoning": Case(text="Hm, \n", in_reasoning=True, reasoning="Hm, \n"),
    "call_inside_reasoning": Case(text=f"{WHOLE}</think>\n\nNo.", in_reasoning=True, content="No.", calls=(ROME,)),
}
CASES |= reasoning_cells("<think>", "</think>", B)
CASES |= text_cells(
    call,
    "\n</parameter>",
    B.strip(),
    "<function=",
    # One newline of either end is the template's; what else is there is the value.
    carriage_returns=Case(text=WHOLE.replace("\n", "\r\n"), calls=(("weather", '{"city": "\\r\\nRome\\r"}', True),)),
)


def long_call(text: str) -> str:
    return call("note", text=text)
