from __future__ import annotations

from dialect_cases.hy_v3 import cases, writer

CASES = cases("")


def long_call(text: str) -> str:
    return f"<tool_calls>\n{writer('')('note', text=text)}</tool_calls>"
