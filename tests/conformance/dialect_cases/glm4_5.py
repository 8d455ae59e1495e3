from __future__ import annotations

from dialect_cases import Case, reasoning_cells, text_cells

ROME = ("weather", '{"city": "Rome"}', True)


def call(name: str, gap: str = "\n", **values: str) -> str:
    parts = (f"<arg_key>{key}</arg_key>{gap}<arg_value>{value}</arg_value>{gap}" for key, value in values.items())
    return f"<tool_call>{name}{gap}{''.join(parts)}</tool_call>"


def cases(gap: str) -> dict[str, Case | str]:
    whole = call("weather", gap, city="Rome")
    code = "<tool_call>x<arg_key>y</arg_key><arg_value></tool_call>"
    return {
        "unfinished_call": Case(
            text=f"Well.{gap}<tool_call>weather{gap}<arg_key>city</arg_key>{gap}<arg_value>Ro</arg",
            content="Well.",
            calls=(("weather", '{"city": "Ro</arg', False),),
        ),
        "unfinished_name": Case(text="<tool_call>wea", content="<tool_call>wea"),
        "bad_payload": Case(
            text=whole.replace("</tool_call>", f"days: 3{gap}</tool_call> Sorry."),
            content=f"{gap}days: 3{gap}</tool_call> Sorry.",
            calls=(("weather", '{"city": "Rome"', False),),
        ),
        "bad_payload_before_name": Case(
            text="<tool_call>weather(Rome)</tool_call>", content="<tool_call>weather(Rome)</tool_call>"
        ),
        # The rest of an unknown call is content to its end tag.
        "unknown_tool": Case(text=call("fly", gap, to="Rome"), content=call("fly", gap, to="Rome")),
        # A value that its schema does not permit is the string that the model wrote.
        "wrong_types": Case(
            text=call("weather", gap, city="5", days="soon", detail="[1]"),
            calls=(("weather", '{"city": "5", "days": "soon", "detail": "[1]"}', True),),
        ),
        "marker_in_string": Case(text=call("note", gap, text=code), calls=(("note", f'{{"text": "{code}"}}', True),)),
        "marker_cut_at_end": Case(text="So <tool_ca", content="So <tool_ca"),
        "call_after_broken_call": Case(
            text=f"<tool_call>oops</tool_call>\n{whole}", content="<tool_call>oops</tool_call>", calls=(ROME,)
        ),
        "text_after_call": Case(text=f"{whole}\nDone.", content="\nDone.", calls=(ROME,)),
        # Another pair might have followed.
        "no_end_marker": Case(text=whole.removesuffix("</tool_call>"), calls=(("weather", '{"city": "Rome"', False),)),
        "empty_arguments": Case(text=call("clock", gap), calls=(("clock", "{}", True),)),
        "control_characters": Case(
            text=call("note", gap, text="a\n\tb\n"), calls=(("note", '{"text": "a\\n\\tb\\n"}', True),)
        ),
        "unfinished_reasoning": Case(text="<think>Hm, \n", reasoning="Hm, \n"),
        "call_inside_reasoning": Case(text=f"{whole}</think>\n\nNo.", in_reasoning=True, content="No.", calls=(ROME,)),
        **reasoning_cells("<think>", "</think>", "<tool_call>"),
        **text_cells(lambda name, **values: call(name, gap, **values), "</arg_value>", "<tool_call>"),
    }


CASES = cases("\n")


def long_call(text: str) -> str:
    return call("note", text=text)
