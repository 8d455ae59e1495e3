from __future__ import annotations

from dialect_cases.glm4_5 import call, cases

CASES = cases("")


def long_call(text: str) -> str:
    return call("note", "", text=text)
