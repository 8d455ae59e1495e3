"""Hunyuan 3: names and pairs of key and value, all calls in one section. The tokens of the preview are plain tags;
those of the release carry a suffix in every tag's name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.frontend.dialects.arg_pairs import PairTags
from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind

RELEASE_SUFFIX = ":opensource"
_NAME = re.compile(r"[^<\s]")


def _dialect(name: str, models: str, suffix: str) -> Dialect:
    section, section_end = f"<tool_calls{suffix}>", f"</tool_calls{suffix}>"
    begin, end, separator = f"<tool_call{suffix}>", f"</tool_call{suffix}>", f"<tool_sep{suffix}>"
    tags = PairTags(end=end, gap="\n", suffix=suffix)

    def detect(evidence: Evidence) -> Verdict:
        pair = rf"{tags.key[0]}KEY{tags.key[1]}\s*{tags.value[0]}VALUE{tags.value[1]}"
        return needs(
            **{
                f"the_template_prints_calls_with_{separator}_behind_the_name": evidence.prints_call(
                    rf"{section}\s*{begin}TOOL{separator}\s*{pair}\s*{end}"
                )
            }
        )

    def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
        """The section to its end, or one call where its tags are missing. The end tag of the section may be missing,
        that of a call never: another pair might have followed."""
        if trigger == section:
            yield from text.skip_space()
            yield from text.expect(begin)
        while True:
            yield from text.skip_space()
            name = yield from text.read_while(_NAME)
            schema = out.schema(name)
            yield from text.skip_space()
            yield from text.expect(separator)
            yield from text.skip_space()
            first = yield from text.expect(tags.key[0], end)
            out.begin(name)
            yield from tags.read(text, out, schema, first)
            yield from text.skip_space()
            if trigger != section:
                yield from text.accept(section_end)  # of a section whose beginning was broken
                return
            if (yield from text.accept(begin, section_end)) != begin:
                return

    def structure(tools: Sequence[Tool]) -> TagGroup:
        found = tuple(
            StructuralTag(
                begin=f"{begin}{tool.name}{separator}\n",
                kind=StructuredKind.LARK,
                text=tags.grammar(tool),
                end=f"{end}\n",
            )
            for tool in tools
        )
        return TagGroup(tags=found, triggers=(section,), opening=f"{section}\n", closing=section_end)

    def pair(key: str, value: str) -> str:
        return f"{tags.key[0]}{key}{tags.key[1]}\n{tags.value[0]}{value}{tags.value[1]}\n"

    return Dialect(
        name=name,
        models=models,
        detect=detect,
        triggers=(section, begin),
        parse=parse,
        resync=(section_end, end),
        markers=(separator, *tags.key, *tags.value),
        reasoning=Reasoning(begin=f"<think{suffix}>", end=f"</think{suffix}>"),
        gap="",
        structure=structure,
        samples=(
            Sample(
                title="reasoning and content, then two calls in one section",
                text=f"Weather.</think{suffix}>On it.{section}\n{begin}weather{separator}\n{pair('city', 'Köln')}"
                f"{pair('hours', '[1, 2.5]')}{end}\n{begin}clock{separator}\n{end}\n{section_end}",
                in_reasoning=True,
                reasoning="Weather.",
                content="On it.",
                calls=(("weather", '{"city": "Köln", "hours": [1, 2.5]}'), ("clock", "{}")),
            ),
            Sample(
                title="a call without space and without the tags of the section",
                text=f"{begin}clock{separator}{end}",
                calls=(("clock", "{}"),),
            ),
        ),
    )


DIALECT = _dialect("hy_v3", "Hunyuan 3", RELEASE_SUFFIX)
DIALECT_PREVIEW = _dialect("hy_v3_preview", "Hunyuan 3 Preview", "")
