from __future__ import annotations

from dialect_cases import Case

WHOLE = '[weather(city="Rome")]'
ROME = ("weather", '{"city": "Rome"}', True)
NO_REASONING = "Llama 3 and 4 do not write reasoning."

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
    "unfinished_reasoning": NO_REASONING,
    "call_inside_reasoning": NO_REASONING,
}


def long_call(text: str) -> str:
    return f'[note(text="{text}")]'
