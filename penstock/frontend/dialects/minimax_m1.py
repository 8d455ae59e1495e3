"""MiniMax M1: a JSON object per line in ``<tool_calls>`` tags."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import json_call_tag, read_json_objects
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict

BEGIN, END = "<tool_calls>", "</tool_calls>"


def detect(evidence: Evidence) -> Verdict:
    """The published template prints no calls; it asks for them."""
    return needs(
        the_template_has_turns_of_MiniMax=evidence.mentions("<beginning_of_sentence>ai name=assistant"),
        the_template_asks_for_calls_in_tool_calls_tags=evidence.mentions(BEGIN) and evidence.mentions(END),
    )


def parse(text: Cursor, out: Writer, _: str) -> Steps[None]:
    """Objects to the end tag, which may be missing."""
    yield from read_json_objects(text, out, END)


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(json_call_tag(tool, "", "\n") for tool in tools)
    return TagGroup(tags=tags, triggers=(BEGIN,), opening=f"{BEGIN}\n", closing=END)


DIALECT = Dialect(
    name="minimax_m1",
    models="MiniMax M1",
    detect=detect,
    triggers=(BEGIN,),
    parse=parse,
    resync=(END,),
    reasoning=Reasoning(begin="<think>", end="</think>", is_undeclared=True),
    structure=structure,
    samples=(
        Sample(
            title="reasoning, then two calls",
            text='<think>\nBoth.\n</think>\n\n<tool_calls>\n{"name": "weather", "arguments": {"city": "Köln"}}\n'
            '{"name": "clock", "arguments": {}}\n</tool_calls>',
            reasoning="Both.",
            calls=(("weather", '{"city": "Köln"}'), ("clock", "{}")),
        ),
    ),
)
