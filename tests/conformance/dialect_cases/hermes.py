from __future__ import annotations

from dialect_cases import ROME, Case, Cells, json_cells, object_call, reasoning_cells

B, E = "<tool_call>\n", "\n</tool_call>"


def cases(begin: str, end: str) -> Cells:
    whole = f'{begin}{{"name": "weather", "arguments": {{"city": "Rome"}}}}{end}'
    return {
        "unfinished_call": Case(
            text=f'Well.\n{begin}{{"name": "weather", "arguments": {{"city": "Ro',
            content="Well.",
            calls=(("weather", '{"city": "Ro', False),),
        ),
        "unfinished_name": Case(text=f'{begin}{{"name": "wea', content=f'{begin}{{"name": "wea'),
        # What was written stays with the call, the rest is content up to the end tag.
        "bad_payload": Case(
            text=f'{begin}{{"name": "weather", "arguments": {{"city": Rome}}}}{end} Sorry.',
            content=f"Rome}}}}{end} Sorry.",
            calls=(("weather", '{"city": ', False),),
        ),
        "bad_payload_before_name": Case(text=f"{begin}weather(Rome){end}", content=f"{begin}weather(Rome){end}"),
        "unknown_tool": Case(
            text=f'{begin}{{"name": "fly", "arguments": {{"to": "Rome"}}}}{end}',
            content=f'{begin}{{"name": "fly", "arguments": {{"to": "Rome"}}}}{end}',
        ),
        # JSON says its types itself: validation is the caller's.
        "wrong_types": Case(
            text=f'{begin}{{"name": "weather", "arguments": {{"city": 5, "days": "x"}}}}{end}',
            calls=(("weather", '{"city": 5, "days": "x"}', True),),
        ),
        "marker_in_string": Case(
            text=f'{begin}{{"name": "note", "arguments": {{"text": "</tool_call><tool_call>{{}}<think>"}}}}{end}',
            calls=(("note", '{"text": "</tool_call><tool_call>{}<think>"}', True),),
        ),
        "marker_cut_at_end": Case(text="So <tool_ca", content="So <tool_ca"),
        "call_after_broken_call": Case(
            text=f'{begin}{{"name": }}{end}\n{whole}', content=f'{begin}{{"name": }}{end}', calls=(ROME,)
        ),
        "text_after_call": Case(text=f"{whole}\nDone.", content="\nDone.", calls=(ROME,)),
        "no_end_marker": Case(text=whole.removesuffix(end), calls=(ROME,)),
        "empty_arguments": Case(
            text=f'{begin}{{"name": "clock", "arguments": null}}{end}', calls=(("clock", "{}", True),)
        ),
        "control_characters": Case(
            text=f'{begin}{{"name": "note", "arguments": {{"text": "a\n\tb"}}}}{end}',
            calls=(("note", '{"text": "a\\n\\tb"}', True),),
        ),
        "unfinished_reasoning": Case(text="<think>\nHm, \n", reasoning="Hm, \n"),
        "call_inside_reasoning": Case(text=f"{whole}</think>\n\nNo.", in_reasoning=True, content="No.", calls=(ROME,)),
        **json_cells(object_call(begin, end), begin.strip()),
        **reasoning_cells("<think>", "</think>", begin),
        "no_arguments": Case(text=f'{begin}{{"name": "clock"}}{end}', calls=(("clock", "{}", True),)),
    }


CASES = cases(B, E)


def long_call(text: str) -> str:
    return f'{B}{{"name": "note", "arguments": {{"text": "{text}"}}}}{E}'
