from __future__ import annotations

from dialect_cases import FOX, LONG_NAME, Case, around_cells, no_reasoning

WHOLE = '[weather(city="Rome")]'
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(text='[weather(city="Ro', calls=(("weather", '{"city": "Ro', False),)),
    "unfinished_name": Case(text="[wea", content="[wea"),
    "bad_payload": Case(text="[weather(city=Rome)]", content="Rome)]", calls=(("weather", '{"city": ', False),)),
    "bad_payload_before_name": Case(text='[weather("Rome")]', content='[weather("Rome")]'),
    "unknown_tool": Case(text='[fly(to="Rome")]', content='[fly(to="Rome")]'),
    # Literals say their types themselves: validation is the caller's.
    "wrong_types": Case(text="[weather(city=5, days='x')]", calls=(("weather", '{"city": 5, "days": "x"}', True),)),
    "marker_in_string": Case(
        text="[note(text=')]<|python_start|>[clock()]')]",
        calls=(("note", '{"text": ")]<|python_start|>[clock()]"}', True),),
    ),
    "marker_cut_at_end": Case(text="So <|python_st", content="So <|python_st"),
    # Without marks nothing says where a broken call ends, so all that follows is content.
    "call_after_broken_call": Case(text=f"[weather(1)]{WHOLE}", content=f"[weather(1)]{WHOLE}"),
    "text_after_call": Case(text=f"{WHOLE}\nDone.", content="\nDone.", calls=(ROME,)),
    "no_end_marker": Case(text=WHOLE.removesuffix("]"), calls=(ROME,)),
    "empty_arguments": Case(text="[clock()]", calls=(("clock", "{}", True),)),
    "control_characters": Case(text="[note(text='a\n\tb')]", calls=(("note", '{"text": "a\\n\\tb"}', True),)),
}
CASES |= around_cells(WHOLE) | no_reasoning("Llama 3 and 4 do not write reasoning.")
CASES |= {
    # An answer that begins with something else is no call, but behind the mark.
    "mark_named_in_content": Case(
        text=f"I use <|python_start|> here. <|python_start|>{WHOLE}",
        content="I use <|python_start|> here. ",
        calls=(ROME,),
    ),
    "byte_order_mark": Case(text=f"\ufeff{WHOLE}", content=f"\ufeff{WHOLE}"),
    "carriage_returns": Case(text='[weather(\r\ncity="Rome"\r\n)]', calls=(ROME,)),
    "no_arguments": CASES["empty_arguments"],
    "arguments_as_string": Case(text='[weather("{}")]', content='[weather("{}")]'),
    # The second one is not written, so it comes back.
    "duplicate_keys": Case(
        text="[note(text='a', text='b')]", content=", text='b')]", calls=(("note", '{"text": "a"', False),)
    ),
    "odd_numbers": Case(text="[clock(x=[-0, 1e400, 0x1F])]", calls=(("clock", '{"x": [-0, 1e400, 31]}', True),)),
    "leading_zero": Case(text="[weather(days=01)]", content="01)]", calls=(("weather", '{"days": ', False),)),
    "surrogate_pair": Case(text=f'[note(text="{FOX}")]', calls=(("note", f'{{"text": "{FOX}"}}', True),)),
    "lone_surrogate": Case(text=f'[note(text="{FOX[:6]}")]', calls=(("note", f'{{"text": "{FOX[:6]}"}}', True),)),
    "long_name": Case(text=f"[{LONG_NAME}()]", content=f"[{LONG_NAME}()]"),
}


def long_call(text: str) -> str:
    return f'[note(text="{text}")]'
