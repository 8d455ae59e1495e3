"""Hermes: JSON objects in ``<tool_call>`` tags, one per call. Hermes 2 and 3, Qwen 2.5 and Qwen 3, QwQ, Granite 4."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import json_call_tag, read_json_objects
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict

BEGIN, END = "<tool_call>", "</tool_call>"


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_JSON_in_tool_call_tags=evidence.prints_call(
            r'<tool_call>\s*\{"name": ?"TOOL", ?"arguments": ?\{"KEY": ?"VALUE"\}\}\s*</tool_call>'
        )
    )


def parse(text: Cursor, out: Writer, _: str) -> Steps[None]:
    """One object per tag; a second one in the same tag is a second call. A missing end tag is forgiven."""
    yield from read_json_objects(text, out, END)


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(json_call_tag(tool, f"{BEGIN}\n", f"\n{END}") for tool in tools)
    return TagGroup(tags=tags, triggers=(BEGIN,), separator="\n")


DIALECT = Dialect(
    name="hermes",
    models="Qwen 2.5, Qwen 3, QwQ, Granite 4, Hermes 2 and 3",
    detect=detect,
    triggers=(BEGIN,),
    parse=parse,
    resync=(END,),
    reasoning=Reasoning(begin="<think>", end="</think>", ends_at_call=True),
    structure=structure,
    samples=(
        Sample(
            title="two calls behind content",
            text='Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
            content="Let me see.",
            calls=(("weather", '{"city": "Köln"}'), ("weather", '{"city": "Rome"}')),
        ),
        Sample(
            title="reasoning, then an answer",
            text="<think>\nThe user greets me.\n</think>\n\nHello!",
            reasoning="The user greets me.",
            content="Hello!",
        ),
        Sample(
            title="reasoning that the prompt has opened, then a call without arguments",
            text='I need the time.\n</think>\n\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
            in_reasoning=True,
            reasoning="I need the time.",
            calls=(("clock", "{}"),),
        ),
    ),
)
