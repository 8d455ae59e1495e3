"""GLM: a function's name and pairs of key and value in ``<tool_call>`` tags. GLM 4.5 and 4.6 write every part on a line
of its own, GLM 4.7 and 5 write all of it without space between."""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.frontend.dialects.arg_pairs import PairTags
from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind

BEGIN, END = "<tool_call>", "</tool_call>"
_NAME = re.compile(r"[^<\s]")
_PAIR = r"<arg_key>KEY</arg_key>\s*<arg_value>VALUE</arg_value>\s*</tool_call>"


def parse(text: Cursor, out: Writer, _: str) -> Steps[None]:
    """One call. The call is whole only with its end tag: without it another pair might have followed."""
    tags = PairTags(end=END)
    yield from text.skip_space()
    name = yield from text.read_while(_NAME)
    yield from text.skip_space()
    schema = out.schema(name)
    first = yield from text.expect(tags.key[0], END)
    out.begin(name)
    yield from tags.read(text, out, schema, first)


def _dialect(name: str, models: str, gap: str) -> Dialect:
    def detect(evidence: Evidence) -> Verdict:
        if gap:
            return needs(
                the_template_prints_a_name_and_key_value_pairs_in_tool_call_tags_on_lines=evidence.prints_call(
                    rf"<tool_call>TOOL\n\s*{_PAIR}"
                )
            )
        return needs(
            the_template_prints_a_name_and_key_value_pairs_in_tool_call_tags=evidence.prints_call(
                rf"<tool_call>TOOL{_PAIR}"
            )
        )

    def structure(tools: Sequence[Tool]) -> TagGroup:
        tags = PairTags(end=END, gap=gap)
        found = tuple(
            StructuralTag(begin=f"{BEGIN}{tool.name}{gap}", kind=StructuredKind.LARK, text=tags.grammar(tool), end=END)
            for tool in tools
        )
        return TagGroup(tags=found, triggers=(BEGIN,), separator=gap)

    return Dialect(
        name=name,
        models=models,
        detect=detect,
        triggers=(BEGIN,),
        parse=parse,
        resync=(END,),
        markers=PairTags(end=END).key + PairTags(end=END).value,
        reasoning=Reasoning(begin="<think>", end="</think>", ends_at_call=True),
        structure=structure,
        samples=(
            Sample(
                title="a string, a number and a list",
                text=f"On it.{gap}<tool_call>weather{gap}<arg_key>city</arg_key>{gap}<arg_value>Köln</arg_value>{gap}"
                f"<arg_key>days</arg_key>{gap}<arg_value>3</arg_value>{gap}"
                f"<arg_key>hours</arg_key>{gap}<arg_value>[1, 2.5]</arg_value>{gap}</tool_call>",
                content="On it.",
                calls=(("weather", '{"city": "Köln", "days": 3, "hours": [1, 2.5]}'),),
            ),
            Sample(
                title="reasoning, then two calls",
                text=f"<think>Time.</think>{gap}<tool_call>clock{gap}</tool_call>{gap}<tool_call>clock{gap}</tool_call>",
                reasoning="Time.",
                calls=(("clock", "{}"), ("clock", "{}")),
            ),
        ),
    )


DIALECT_4_5 = _dialect("glm4_5", "GLM 4.5, GLM 4.6", "\n")
DIALECT_4_7 = _dialect("glm4_7", "GLM 4.7, GLM 5", "")
