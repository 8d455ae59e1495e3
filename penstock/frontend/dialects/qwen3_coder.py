"""Qwen 3 Coder: a function and its parameters as tags. Qwen3-Coder, Qwen 3.5 and 3.6."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import NAME_CHARACTER
from penstock.frontend.dialects.value_grammar import parameters_grammar
from penstock.frontend.dialects.values import ArgumentsWriter
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind

BEGIN, END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_function_and_parameter_tags=evidence.prints_call(
            r"<tool_call>\s*<function=TOOL>\s*<parameter=KEY>\n?VALUE\n?</parameter>\s*</function>"
        )
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    """One function per tag. Models leave outer tags out; then the function stands alone."""
    if trigger == BEGIN:
        yield from text.skip_space()
        yield from text.expect(FUNCTION)
    name = yield from text.read_while(NAME_CHARACTER)
    yield from text.expect(">")
    schema = out.schema(name)
    out.begin(name)
    arguments = ArgumentsWriter(out, schema)
    while True:
        yield from text.skip_space()
        if (yield from text.expect(PARAMETER, FUNCTION_END)) == FUNCTION_END:
            break
        key, _ = yield from text.read_until(">")
        yield from text.accept("\n")
        yield from arguments.read_value(text, key, f"\n{PARAMETER_END}", PARAMETER_END)
    arguments.close()
    out.end()
    if trigger == BEGIN:
        yield from text.skip_space()
        yield from text.accept(END)


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(
        StructuralTag(
            begin=f"{BEGIN}\n{FUNCTION}{tool.name}>\n",
            kind=StructuredKind.LARK,
            text=parameters_grammar(tool.parameters, before=f"{PARAMETER}{{key}}>\n", after=f"\n{PARAMETER_END}\n"),
            end=f"{FUNCTION_END}\n{END}",
        )
        for tool in tools
    )
    return TagGroup(tags=tags, triggers=(BEGIN,), separator="\n")


DIALECT = Dialect(
    name="qwen3_coder",
    models="Qwen3-Coder, Qwen 3.5, Qwen 3.6",
    detect=detect,
    triggers=(BEGIN, FUNCTION),
    parse=parse,
    resync=(END, FUNCTION_END),
    reasoning=Reasoning(begin="<think>", end="</think>", ends_at_call=True),
    gap="\n\n",
    structure=structure,
    samples=(
        Sample(
            title="a string, a number and a list",
            text="On it.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n"
            "<parameter=days>\n3\n</parameter>\n<parameter=hours>\n[1, 2.5]\n</parameter>\n</function>\n</tool_call>",
            content="On it.",
            calls=(("weather", '{"city": "Köln", "days": 3, "hours": [1, 2.5]}'),),
        ),
        Sample(
            title="reasoning, then a call without arguments and without outer tags",
            text="Time.\n</think>\n\n<function=clock>\n</function>",
            in_reasoning=True,
            reasoning="Time.",
            calls=(("clock", "{}"),),
        ),
    ),
)
