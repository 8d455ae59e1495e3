from __future__ import annotations

from dialect_cases import CASE_NAMES, Case, reasoning_cells

CASES = dict.fromkeys(CASE_NAMES, "This dialect has no calls.") | {
    "unfinished_reasoning": Case(text="<think>\nHm, \n", reasoning="Hm, \n"),
    **reasoning_cells("<think>", "</think>", "<tool_call>"),
    "marker_cut_at_end": Case(text="<thin", content="<thin"),
}


def long_call(text: str) -> str:
    return f"<think>\n{text}\n</think>\n{text}"


NO_ROUND_TRIP = "Templates of models that only think have no tools; GLM-Z1 takes reasoning out of what it prints."
