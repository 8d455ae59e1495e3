"""DeepSeek V3.1: a section of calls, each with its name and plain JSON. V3.1, V3.1 Terminus and V3.2 Exp."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.deepseek_v3 import CALL, CALL_END, CALLS, CALLS_END, SEPARATOR, THINK, read_section
from penstock.frontend.dialects.json_calls import NAME_CHARACTER, arguments_tag, read_arguments
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_name_and_JSON_between_tool_call_marks=evidence.prints_call(
            CALL + "TOOL" + SEPARATOR + r'\{"KEY": ?"VALUE"\}' + CALL_END
        )
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    yield from read_section(text, out, trigger, _read_call)


def _read_call(text: Cursor, out: Writer) -> Steps[None]:
    name = yield from text.read_while(NAME_CHARACTER)
    yield from text.expect(SEPARATOR)
    yield from text.skip_space()
    yield from read_arguments(text, out, name, end=CALL_END)


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(arguments_tag(tool, f"{CALL}{tool.name}{SEPARATOR}", CALL_END) for tool in tools)
    return TagGroup(tags=tags, triggers=(CALLS,), opening=CALLS, closing=CALLS_END)


DIALECT = Dialect(
    name="deepseek_v31",
    models="DeepSeek V3.1, V3.1 Terminus, V3.2 Exp",
    detect=detect,
    triggers=(CALLS, CALL),
    parse=parse,
    resync=(CALL_END, CALLS_END),
    markers=(SEPARATOR,),
    reasoning=THINK,
    gap="",
    structure=structure,
    samples=(
        Sample(
            title="content and two calls",
            text="Let me see.<｜tool▁calls▁begin｜>"
            '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Köln"}<｜tool▁call▁end｜>'
            "<｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            content="Let me see.",
            calls=(("weather", '{"city": "Köln"}'), ("clock", "{}")),
        ),
        Sample(
            title="reasoning that the prompt has opened",
            text="Easy.</think>Four.",
            in_reasoning=True,
            reasoning="Easy.",
            content="Four.",
        ),
    ),
)
