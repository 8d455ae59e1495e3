"""DeepSeek V3: a section of calls, each with its kind, its name and fenced JSON. V2.5, V3, R1 and what was distilled
from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import NAME_CHARACTER, arguments_tag, read_arguments
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
THINK = Reasoning(begin="<think>", end="</think>")
_FENCE = "```"


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_fenced_JSON_between_tool_call_marks=evidence.prints_call(
            CALL + r"\w+" + SEPARATOR + r'TOOL\n```json\n\{"KEY": ?"VALUE"\}\n```' + CALL_END
        )
    )


def parse(text: Cursor, out: Writer, trigger: str) -> Steps[None]:
    yield from read_section(text, out, trigger, _read_call)


def read_section(
    text: Cursor, out: Writer, trigger: str, read_call: Callable[[Cursor, Writer], Steps[None]]
) -> Steps[None]:
    """A section of calls, or calls without one. Some templates never close the section, so the end may be missing."""
    if trigger == CALLS:
        yield from text.skip_space()
        if (yield from text.expect(CALL, CALLS_END)) == CALLS_END:
            return
    while True:
        yield from text.skip_space()
        yield from read_call(text, out)
        yield from text.skip_space()
        yield from text.accept(CALL_END)
        yield from text.skip_space()
        if (yield from text.accept(CALL, CALLS_END)) != CALL:
            return


def _read_call(text: Cursor, out: Writer) -> Steps[None]:
    yield from text.read_while(NAME_CHARACTER)  # the kind: function
    yield from text.expect(SEPARATOR)
    name = yield from text.read_while(NAME_CHARACTER)
    yield from text.skip_space()
    yield from text.expect(f"{_FENCE}json", _FENCE)
    yield from text.skip_space()
    yield from read_arguments(text, out, name, end=_FENCE)
    yield from text.skip_space()
    yield from text.accept(_FENCE)


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(
        arguments_tag(tool, f"{CALL}function{SEPARATOR}{tool.name}\n{_FENCE}json\n", f"\n{_FENCE}{CALL_END}")
        for tool in tools
    )
    return TagGroup(tags=tags, triggers=(CALLS,), opening=CALLS, separator="\n", closing=CALLS_END)


DIALECT = Dialect(
    name="deepseek_v3",
    models="DeepSeek V2.5, V3, R1 and models distilled from R1",
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
            title="reasoning that the prompt has opened, content and two calls",
            text="Both.\n</think>\n\nLet me see."
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
            '```json\n{"city": "Köln"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n'
            "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            in_reasoning=True,
            reasoning="Both.",
            content="Let me see.",
            calls=(("weather", '{"city": "Köln"}'), ("clock", "{}")),
        ),
        Sample(
            title="a section without an end",
            text="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```<｜tool▁call▁end｜>",
            calls=(("clock", "{}"),),
        ),
    ),
)
