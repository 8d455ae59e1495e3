"""DeepSeek V4: DSML in a ``tool_calls`` block."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.dsml import (
    INVOKE,
    INVOKE_END,
    IS_JSON,
    IS_STRING,
    PARAMETER,
    PARAMETER_END,
    TOKEN,
    block_of,
    read_block,
)
from penstock.frontend.dialects.value_grammar import parameters_grammar
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind

BEGIN, END = block_of("tool_calls")
MISSPELLED = (block_of("toolcalls")[0], block_of("tool")[0])
"""Beginnings of a block as models write them now and then; each ends like a block."""


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_DSML_in_a_tool_calls_block=evidence.prints_call(
            BEGIN + r'\s*<｜DSML｜invoke name="TOOL">\s*<｜DSML｜parameter name="KEY" string="true">VALUE</'
        )
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    yield from read_block(text, out, trigger, END)


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(
        StructuralTag(
            begin=f'{INVOKE}{tool.name}">\n',
            kind=StructuredKind.LARK,
            text=parameters_grammar(
                tool,
                before=f'{PARAMETER}{{key}}"',
                after=f"{PARAMETER_END}\n",
                quoted=(IS_STRING, ""),
                plain=(IS_JSON, ""),
            ),
            end=INVOKE_END,
        )
        for tool in tools
    )
    return TagGroup(tags=tags, triggers=(BEGIN,), opening=f"{BEGIN}\n", separator="\n", closing=f"\n{END}")


DIALECT = Dialect(
    name="deepseek_v4",
    models="DeepSeek V4",
    detect=detect,
    triggers=(BEGIN, *MISSPELLED, INVOKE),
    parse=parse,
    resync=(INVOKE_END, END),
    markers=(TOKEN,),
    reasoning=Reasoning(begin="<think>", end="</think>", ends_at_call=True),
    gap="\n\n",
    structure=structure,
    samples=(
        Sample(
            title="reasoning that the prompt has opened, content and two calls",
            text="Both.</think>On it.\n\n<｜DSML｜tool_calls>\n"
            '<｜DSML｜invoke name="weather">\n'
            '<｜DSML｜parameter name="city" string="true">Köln</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="hours" string="false">[1, 2.5]</｜DSML｜parameter>\n'
            '</｜DSML｜invoke>\n<｜DSML｜invoke name="clock">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
            in_reasoning=True,
            reasoning="Both.",
            content="On it.",
            calls=(("weather", '{"city": "Köln", "hours": [1, 2.5]}'), ("clock", "{}")),
        ),
        Sample(
            title="a block whose beginning is misspelled",
            text='<｜DSML｜toolcalls>\n<｜DSML｜invoke name="clock">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
            calls=(("clock", "{}"),),
        ),
        Sample(
            title="all arguments in one parameter that the tool does not have",
            text='<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n'
            '<｜DSML｜parameter name="arguments" string="true">{"city": "Köln"}</｜DSML｜parameter>\n'
            "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
            calls=(("weather", '{"city": "Köln"}'),),
        ),
        Sample(
            title="arguments as one object, outside a block",
            text='<｜DSML｜invoke name="weather">\n{"city": "Köln"}\n</｜DSML｜invoke>',
            calls=(("weather", '{"city": "Köln"}'),),
        ),
    ),
)
