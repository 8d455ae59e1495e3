from __future__ import annotations

from dialect_cases import Case, json_cells, reasoning_cells

A, F = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"


def call(name: str, arguments: str) -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"


WHOLE = call("weather", '{"city": "Rome"}')
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(
        text=f"{F}Well.{NEXT}" + call("weather", '{"city": "Ro').removesuffix("<|call|>"),
        content="Well.",
        calls=(("weather", '{"city": "Ro', False),),
    ),
    "unfinished_name": Case(
        text="<|channel|>commentary to=functions.wea", content="<|channel|>commentary to=functions.wea"
    ),
    "bad_payload": Case(
        text=call("weather", '{"city": Rome}') + f"<|start|>assistant{F}Sorry.",
        content="Rome}<|call|>\n\nSorry.",
        calls=(("weather", '{"city": ', False),),
    ),
    "bad_payload_before_name": Case(
        text="<|channel|>commentary to=functions.weather<|call|>",
        content="<|channel|>commentary to=functions.weather<|call|>",
    ),
    "unknown_tool": Case(text=call("fly", '{"to": "Rome"}'), content=call("fly", '{"to": "Rome"}')),
    "wrong_types": Case(
        text=call("weather", '{"city": 5, "days": "x"}'), calls=(("weather", '{"city": 5, "days": "x"}', True),)
    ),
    "marker_in_string": Case(
        text=call("note", '{"text": "<|call|><|channel|>final<|message|>"}'),
        calls=(("note", '{"text": "<|call|><|channel|>final<|message|>"}', True),),
    ),
    "marker_cut_at_end": Case(text=f"{F}So <|en", content="So <|en"),
    "call_after_broken_call": Case(
        text=call("weather", "Rome") + f"<|start|>assistant{WHOLE}", content=call("weather", "Rome"), calls=(ROME,)
    ),
    "text_after_call": Case(text=f"{WHOLE}<|start|>assistant{F}Done.<|return|>", content="Done.", calls=(ROME,)),
    "no_end_marker": Case(text=WHOLE.removesuffix("<|call|>"), calls=(ROME,)),
    "empty_arguments": Case(text=call("clock", "null"), calls=(("clock", "{}", True),)),
    "control_characters": Case(
        text=call("note", '{"text": "a\n\tb"}'), calls=(("note", '{"text": "a\\n\\tb"}', True),)
    ),
    "unfinished_reasoning": Case(text=f"{A}Hm, \n", reasoning="Hm, \n"),
    # A message that is a call in its text alone is reasoning; a header ends the message before it.
    "call_inside_reasoning": Case(
        text=f'to=functions.weather {{"city": "Rome"}}{NEXT}{F}No.',
        in_reasoning=True,
        reasoning='to=functions.weather {"city": "Rome"}',
        content="No.",
    ),
}
# A message without a header goes on with the answer, and stands apart from what was before it.
CASES |= json_cells(call) | reasoning_cells(
    A, "<|end|>", "to=functions.weather", answer=f"<|start|>assistant{F}", closes="b\n\nc"
)
# What is no header is content to the end of its message.
CASES["mark_named_in_content"] = Case(
    text=f"{F}I use <|channel|> here.{NEXT}{WHOLE}", content="I use <|channel|> here.<|end|>", calls=(ROME,)
)
CASES["no_arguments"] = Case(text=call("clock", ""), calls=(("clock", "{}", True),))


def long_call(text: str) -> str:
    return call("note", f'{{"text": "{text}"}}')
