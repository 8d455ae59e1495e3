from __future__ import annotations

from collections.abc import Callable

from dialect_cases import Case, reasoning_cells, text_cells

ROME = ("weather", '{"city": "Rome"}', True)


def writer(suffix: str) -> Callable[..., str]:
    def call(name: str, **values: str) -> str:
        parts = "".join(
            f"<arg_key{suffix}>{key}</arg_key{suffix}>\n<arg_value{suffix}>{value}</arg_value{suffix}>\n"
            for key, value in values.items()
        )
        return f"<tool_call{suffix}>{name}<tool_sep{suffix}>\n{parts}</tool_call{suffix}>\n"

    return call


def cases(suffix: str) -> dict[str, Case | str]:
    call = writer(suffix)
    begin, end = f"<tool_calls{suffix}>\n", f"</tool_calls{suffix}>"
    one, one_end = f"<tool_call{suffix}>", f"</tool_call{suffix}>"
    whole = f"{begin}{call('weather', city='Rome')}{end}"
    fly = f"{begin}{call('fly', to='Rome')}{end}"
    code = f"{one_end}{end}<tool_sep{suffix}><arg_key{suffix}>"
    start = f"{begin}{one}weather<tool_sep{suffix}>\n<arg_key{suffix}>city</arg_key{suffix}>\n<arg_value{suffix}>"
    rome = f"{start}Rome</arg_value{suffix}>\n"
    return {
        "unfinished_call": Case(
            text=f"Well.{start}Ro</arg", content="Well.", calls=(("weather", '{"city": "Ro</arg', False),)
        ),
        "unfinished_name": Case(text=f"{begin}{one}wea", content=f"{begin}{one}wea"),
        "bad_payload": Case(
            text=f"{rome}days: 3\n{one_end} Sorry.",
            content=f"\ndays: 3\n{one_end} Sorry.",
            calls=(("weather", '{"city": "Rome"', False),),
        ),
        "bad_payload_before_name": Case(text=f"{begin}weather(Rome)\n{end}", content=f"{begin}weather(Rome)\n{end}"),
        "unknown_tool": Case(text=fly, content=fly),
        # A value that its schema does not permit is the string that the model wrote.
        "wrong_types": Case(
            text=f"{begin}{call('weather', city='5', days='soon', detail='[1]')}{end}",
            calls=(("weather", '{"city": "5", "days": "soon", "detail": "[1]"}', True),),
        ),
        "marker_in_string": Case(
            text=f"{begin}{call('note', text=code)}{end}",
            calls=(("note", f'{{"text": "{code}"}}'.replace("\n", "\\n"), True),),
        ),
        "marker_cut_at_end": Case(text="So <tool_cal", content="So <tool_cal"),
        "call_after_broken_call": Case(
            text=f"{begin}{one}oops{one_end}\n{call('weather', city='Rome')}{end}",
            content=f"{begin}{one}oops{one_end}\n",
            calls=(ROME,),
        ),
        "text_after_call": Case(text=f"{whole}\nDone.", content="\nDone.", calls=(ROME,)),
        "no_end_marker": Case(text=f"{begin}{call('weather', city='Rome')}", calls=(ROME,)),
        "empty_arguments": Case(text=f"{begin}{call('clock')}{end}", calls=(("clock", "{}", True),)),
        "control_characters": Case(
            text=f"{begin}{call('note', text='a' + chr(10) + chr(9) + 'b')}{end}",
            calls=(("note", '{"text": "a\\n\\tb"}', True),),
        ),
        "unfinished_reasoning": Case(text="Hm, \n", in_reasoning=True, reasoning="Hm, \n"),
        "call_inside_reasoning": Case(
            text=f"{whole}</think{suffix}>No.", in_reasoning=True, reasoning=whole, content="No."
        ),
        **reasoning_cells(f"<think{suffix}>", f"</think{suffix}>", begin),
        **text_cells(
            lambda name, **values: f"{begin}{call(name, **values)}{end}", f"</arg_value{suffix}>", begin.strip(), one
        ),
    }


CASES = cases(":opensource")


def long_call(text: str) -> str:
    return f"<tool_calls:opensource>\n{writer(':opensource')('note', text=text)}</tool_calls:opensource>"
