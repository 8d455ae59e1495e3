from __future__ import annotations

from dialect_cases import Case
from dialect_cases.qwen3_coder import CASES as QWEN3_CODER
from dialect_cases.qwen3_coder import ROME, WHOLE, B, E, long_call

__all__ = ["CASES", "long_call"]

CASES = QWEN3_CODER | {
    # The template puts nothing between content and a call, so newlines are content.
    "unfinished_call": Case(
        text=f"Well.\n\n{B}<function=weather>\n<parameter=city>\nRo\n</para",
        content="Well.\n\n",
        calls=(("weather", '{"city": "Ro\\n</para', False),),
    ),
    "no_end_marker": Case(text=f"{WHOLE.removesuffix(E)}\nDone.", content="Done.", calls=(ROME,)),
}
