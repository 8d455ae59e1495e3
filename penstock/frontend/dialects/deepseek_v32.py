"""DeepSeek V3.2: DSML in a ``function_calls`` block."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.deepseek_v3 import THINK
from penstock.frontend.dialects.dsml import INVOKE, INVOKE_END, TOKEN, block_of, read_block
from penstock.frontend.dialects.json_calls import arguments_tag
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict

BEGIN, END = block_of("function_calls")


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_DSML_in_a_function_calls_block=evidence.prints_call(
            BEGIN + r'\s*<｜DSML｜invoke name="TOOL">\s*<｜DSML｜parameter name="KEY" string="true">VALUE</'
        )
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    yield from read_block(text, out, trigger, END)


def structure(tools: Sequence[Tool]) -> TagGroup:
    """Arguments as one object, the other form that the model knows: in a text of parameters the special token of
    this version's tokenizer could not be told from the value before it."""
    tags = tuple(arguments_tag(tool, f'{INVOKE}{tool.name}">\n', f"\n{INVOKE_END}") for tool in tools)
    return TagGroup(tags=tags, triggers=(f"<{TOKEN}",), opening=f"{BEGIN}\n", separator="\n", closing=f"\n{END}")


DIALECT = Dialect(
    name="deepseek_v32",
    models="DeepSeek V3.2",
    detect=detect,
    triggers=(BEGIN, INVOKE),
    parse=parse,
    resync=(INVOKE_END, END),
    markers=(TOKEN,),
    reasoning=THINK,
    gap="\n\n",
    structure=structure,
    samples=(
        Sample(
            title="content and two calls",
            text="On it.\n\n<｜DSML｜function_calls>\n"
            '<｜DSML｜invoke name="weather">\n'
            '<｜DSML｜parameter name="city" string="true">Köln</｜DSML｜parameter>\n'
            '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
            '</｜DSML｜invoke>\n<｜DSML｜invoke name="clock">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
            content="On it.",
            calls=(("weather", '{"city": "Köln", "days": 3}'), ("clock", "{}")),
        ),
        Sample(
            title="a type that only the schema knows",
            text='<｜DSML｜function_calls><｜DSML｜invoke name="weather">'
            '<｜DSML｜parameter name="days">3</｜DSML｜parameter>'
            "</｜DSML｜invoke></｜DSML｜function_calls>",
            calls=(("weather", '{"days": 3}'),),
        ),
    ),
)
