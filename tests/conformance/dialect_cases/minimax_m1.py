from __future__ import annotations

from dialect_cases import Case
from dialect_cases.hermes import cases

B, E = "<tool_calls>\n", "\n</tool_calls>"
CASES = cases(B, E) | {
    # The end tag of the section stays behind the call that was read.
    "call_inside_reasoning": Case(
        text=f'<think>{B}{{"name": "clock"}}{E}</think>No.', reasoning=f'{B}{{"name": "clock"}}{E}', content="No."
    ),
}


def long_call(text: str) -> str:
    return f'{B}{{"name": "note", "arguments": {{"text": "{text}"}}}}{E}'


NO_ROUND_TRIP = "The published template prints the text of a message and no calls."
