"""Step 3.5: the tags of Qwen 3 Coder without space between content and calls, and with what this model gets wrong in
its outer tags. Step 3.5 and 3.7."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects import qwen3_coder
from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import NAME_CHARACTER
from penstock.frontend.dialects.qwen3_coder import (
    BEGIN,
    END,
    FUNCTION,
    FUNCTION_END,
    PARAMETER,
    PARAMETER_END,
)
from penstock.frontend.dialects.values import ArgumentsWriter
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_function_and_parameter_tags_right_behind_content=evidence.prints_call(
            r"</think>\n<tool_call>\s*<function=TOOL>\s*<parameter=KEY>\n?VALUE\n?</parameter>\s*</function>"
        ),
        the_template_answers_calls_in_a_turn_of_tool_response=evidence.mentions("<|im_start|>tool_response"),
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    """One function per tag. What has only one meaning is mended: a begin tag that comes twice or not at all, and an end
    of the call without an end of the function. The end of a parameter is never guessed."""
    if trigger == BEGIN:
        yield from text.skip_space()
        while (yield from text.expect(FUNCTION, BEGIN)) == BEGIN:
            yield from text.skip_space()
    name = yield from text.read_while(NAME_CHARACTER)
    yield from text.expect(">")
    schema = out.schema(name)
    out.begin(name)
    arguments = ArgumentsWriter(out, schema)
    while True:
        yield from text.skip_space()
        tag = yield from text.expect(PARAMETER, FUNCTION_END, END)
        if tag != PARAMETER:
            break
        key, _ = yield from text.read_until(">")
        yield from text.accept("\n")
        yield from arguments.read_value(text, key, f"\n{PARAMETER_END}", PARAMETER_END)
    arguments.close()
    out.end()
    if tag == FUNCTION_END:
        yield from text.skip_space()
        yield from text.accept(END)


def structure(tools: Sequence[Tool]) -> TagGroup:
    group = qwen3_coder.structure(tools)
    return TagGroup(tags=group.tags, triggers=group.triggers)


DIALECT = Dialect(
    name="step3_5",
    models="Step 3.5, Step 3.7",
    detect=detect,
    triggers=(BEGIN, FUNCTION),
    parse=parse,
    resync=(END, FUNCTION_END),
    markers=(PARAMETER, PARAMETER_END),
    reasoning=Reasoning(begin="<think>", end="</think>", ends_at_call=True),
    gap="",
    structure=structure,
    samples=(
        Sample(
            title="reasoning and content, then two calls",
            text="Weather.\n</think>\nOn it.<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n"
            "<parameter=hours>\n[1, 2.5]\n</parameter>\n</function>\n</tool_call><tool_call>\n<function=clock>\n"
            "</function>\n</tool_call>",
            in_reasoning=True,
            reasoning="Weather.",
            content="On it.",
            calls=(("weather", '{"city": "Köln", "hours": [1, 2.5]}'), ("clock", "{}")),
        ),
        Sample(
            title="a begin tag twice, no end of the function",
            text="<tool_call>\n<tool_call>\n<function=clock>\n</tool_call>",
            calls=(("clock", "{}"),),
        ),
    ),
)
