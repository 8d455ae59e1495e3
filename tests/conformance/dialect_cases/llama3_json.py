from __future__ import annotations

from dialect_cases import Case, json_cells, no_reasoning, object_call

WHOLE = '{"name": "weather", "parameters": {"city": "Rome"}}'
ROME = ("weather", '{"city": "Rome"}', True)

CASES = {
    "unfinished_call": Case(
        text='{"name": "weather", "parameters": {"city": "Ro', calls=(("weather", '{"city": "Ro', False),)
    ),
    "unfinished_name": Case(text='{"name": "wea', content='{"name": "wea'),
    "bad_payload": Case(
        text='{"name": "weather", "parameters": {"city": Rome}}',
        content="Rome}}",
        calls=(("weather", '{"city": ', False),),
    ),
    "bad_payload_before_name": Case(text='{"name": Rome}', content='{"name": Rome}'),
    "unknown_tool": Case(
        text='{"name": "fly", "parameters": {"to": "Rome"}}', content='{"name": "fly", "parameters": {"to": "Rome"}}'
    ),
    "wrong_types": Case(
        text='{"name": "weather", "parameters": {"city": 5, "days": "x"}}',
        calls=(("weather", '{"city": 5, "days": "x"}', True),),
    ),
    "marker_in_string": Case(
        text='{"name": "note", "parameters": {"text": "<|python_tag|>; {"}}',
        calls=(("note", '{"text": "<|python_tag|>; {"}', True),),
    ),
    "marker_cut_at_end": Case(text="So <|python_t", content="So <|python_t"),
    # Without tags nothing says where a broken call ends, so all that follows is content.
    "call_after_broken_call": Case(text='{"name": }; ' + WHOLE, content='{"name": }; ' + WHOLE),
    "text_after_call": Case(text=WHOLE + "\nDone.", content="Done.", calls=(ROME,)),
    "no_end_marker": "There is no end marker.",
    "empty_arguments": Case(text='{"name": "clock"}', calls=(("clock", "{}", True),)),
    "control_characters": Case(
        text='{"name": "note", "parameters": {"text": "a\n\tb"}}',
        calls=(("note", '{"text": "a\\n\\tb"}', True),),
    ),
}
CASES |= json_cells(object_call("", "", "parameters")) | no_reasoning("Llama 3 does not write reasoning.")
CASES["no_arguments"] = CASES["empty_arguments"]
# An answer that begins with something else is no call, but behind the tag.
CASES["mark_named_in_content"] = Case(
    text=f"I use <|python_tag|> here. <|python_tag|>{WHOLE}", content="I use <|python_tag|> here. ", calls=(ROME,)
)
CASES["byte_order_mark"] = Case(text=f"\ufeff{WHOLE}", content=f"\ufeff{WHOLE}")


def long_call(text: str) -> str:
    return '{"name": "note", "parameters": {"text": "' + text + '"}}'
