"""MiniMax M2: functions and their parameters as tags with names in attributes, all calls in one section. M2, M2.5,
M2.7."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import NAME_CHARACTER
from penstock.frontend.dialects.value_grammar import parameters_grammar
from penstock.frontend.dialects.values import ArgumentsWriter
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind

BEGIN, END = "<minimax:tool_call>", "</minimax:tool_call>"
INVOKE, INVOKE_END = '<invoke name="', "</invoke>"
PARAMETER, PARAMETER_END = '<parameter name="', "</parameter>"
NAME_END = '">'


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_calls_as_invoke_tags_in_minimax_tool_call_tags=evidence.prints_call(
            r'<minimax:tool_call>\s*<invoke name="TOOL">\s*<parameter name="KEY">VALUE</parameter>\s*</invoke>'
        )
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    yield from read_section(text, out, trigger, (INVOKE, END), _invoke)


def read_section(
    text: Cursor, out: Writer, trigger: str, tags: tuple[str, str], read_invoke: Callable[[Cursor, Writer], Steps[None]]
) -> Steps[None]:
    """The section to its end. Models leave its tags out; then functions stand alone. A missing end tag of the
    section is forgiven. ``tags`` open a function and end the section."""
    invoke, end = tags
    if trigger != invoke:
        yield from text.skip_space()
        yield from text.expect(invoke)
    while True:
        yield from read_invoke(text, out)
        yield from text.skip_space()
        if (yield from text.accept(invoke, end)) != invoke:
            return


def _invoke(text: Cursor, out: Writer) -> Steps[None]:
    """One function, from its name on."""
    name = yield from text.read_while(NAME_CHARACTER)
    yield from text.expect(NAME_END)
    schema = out.schema(name)
    out.begin(name)
    arguments = ArgumentsWriter(out, schema)
    while True:
        yield from text.skip_space()
        if (yield from text.expect(PARAMETER, INVOKE_END)) == INVOKE_END:
            break
        key, _ = yield from text.read_until(NAME_END)
        yield from arguments.read_value(text, key, PARAMETER_END)
    arguments.close()
    out.end()


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(
        StructuralTag(
            begin=f"{INVOKE}{tool.name}{NAME_END}\n",
            kind=StructuredKind.LARK,
            text=parameters_grammar(
                tool.parameters, before=f"{PARAMETER}{{key}}{NAME_END}", after=f"{PARAMETER_END}\n"
            ),
            end=f"{INVOKE_END}\n",
        )
        for tool in tools
    )
    return TagGroup(tags=tags, triggers=(BEGIN,), opening=f"{BEGIN}\n", closing=END)


DIALECT = Dialect(
    name="minimax_m2",
    models="MiniMax M2, M2.5, M2.7",
    detect=detect,
    triggers=(BEGIN, INVOKE),
    parse=parse,
    resync=(END, INVOKE_END),
    markers=(PARAMETER, PARAMETER_END),
    reasoning=Reasoning(begin="<think>", end="</think>", ends_at_call=True),
    structure=structure,
    samples=(
        Sample(
            title="two calls in one section, behind reasoning and content",
            text="Weather.\n</think>\n\nOn it.\n<minimax:tool_call>\n"
            '<invoke name="weather">\n<parameter name="city">Köln</parameter>\n<parameter name="days">3</parameter>\n'
            '<parameter name="hours">[1, 2.5]</parameter>\n</invoke>\n'
            '<invoke name="clock">\n</invoke>\n</minimax:tool_call>',
            in_reasoning=True,
            reasoning="Weather.",
            content="On it.",
            calls=(("weather", '{"city": "Köln", "days": 3, "hours": [1, 2.5]}'), ("clock", "{}")),
        ),
        Sample(
            title="a call without the tags of the section",
            text='<invoke name="clock">\n</invoke>',
            calls=(("clock", "{}"),),
        ),
    ),
)
