"""MiniCPM5: a function and its parameters as XML elements. Values with characters that XML reserves, or with newlines,
stand in CDATA sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penstock.frontend.dialects.contract import Dialect, Evidence, Reasoning, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.json_calls import NAME_CHARACTER
from penstock.frontend.dialects.value_grammar import parameters_grammar
from penstock.frontend.dialects.values import ArgumentsWriter, kinds_of, parameter_schema, value_json
from penstock.frontend.dialects.writer import Writer
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind

# Detokenizers that strip around special tokens lose the space.
FUNCTIONS = ("<function name=", "<functionname=")
PARAMETERS = ("<param name=", "<paramname=")
FUNCTION_END, PARAMETER_END = "</function>", "</param>"
_QUOTES = ('"', "'")
CDATA, CDATA_END = "<![CDATA[", "]]>"
ENTITIES = {"&lt;": "<", "&gt;": ">", "&amp;": "&", "&quot;": '"', "&apos;": "'"}


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_elements_of_function_and_param=evidence.prints_call(
            r'<function name="TOOL">\s*<param name="KEY">VALUE</param>\s*</function>'
        )
    )


def parse(text: Cursor, out: Writer, _: str) -> Steps[None]:
    """One function. Its end is never forgiven: another parameter might have followed."""
    quote = yield from text.expect(*_QUOTES)
    name = yield from text.read_while(NAME_CHARACTER)
    yield from text.expect(f"{quote}>")
    schema = out.schema(name)
    out.begin(name)
    arguments = ArgumentsWriter(out, schema)
    while True:
        yield from text.skip_space()
        if (yield from text.expect(*PARAMETERS, FUNCTION_END)) == FUNCTION_END:
            break
        quote = yield from text.expect(*_QUOTES)
        key, _ = yield from text.read_until(f"{quote}>")
        yield from _argument(text, arguments, key, schema)
    arguments.close()
    out.end()


def _argument(text: Cursor, arguments: ArgumentsWriter, key: str, schema: Mapping[str, Any]) -> Steps[None]:
    kinds = kinds_of(parameter_schema(schema, key), schema)
    null = None
    if "null" in kinds and "string" in kinds:
        null = yield from text.accept(f"null{PARAMETER_END}", f"None{PARAMETER_END}")
    if null is not None:
        arguments.write(key, "null")
    elif "string" in kinds:
        arguments.begin_string(key)
        yield from _characters(text, arguments.string_text)
        arguments.end_string()
    else:
        parts: list[str] = []
        yield from _characters(text, parts.append)
        value = "".join(parts)
        if not arguments.write_all(key, value):
            arguments.write(key, value_json(value, kinds))


def _characters(text: Cursor, sink: Callable[[str], None]) -> Steps[None]:
    """An element's text to its end tag, which is read: entities decoded, CDATA sections as they are."""
    while True:
        found = yield from text.stream_until(PARAMETER_END, CDATA, *ENTITIES, sink=sink)
        if found == PARAMETER_END:
            return
        if found == CDATA:
            yield from text.stream_until(CDATA_END, sink=sink)
        else:
            sink(ENTITIES[found])


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(
        StructuralTag(
            begin=f'<function name="{tool.name}">',
            kind=StructuredKind.LARK,
            text=parameters_grammar(
                tool.parameters,
                before='<param name="{key}">',
                after=PARAMETER_END,
                quoted=(CDATA, CDATA_END),
                bare="[^<&]",
            ),
            end=FUNCTION_END,
        )
        for tool in tools
    )
    return TagGroup(tags=tags, triggers=("<function",))  # where it is a token, no text may follow in a trigger


DIALECT = Dialect(
    name="minicpm5",
    models="MiniCPM5",
    detect=detect,
    triggers=FUNCTIONS,
    parse=parse,
    resync=(FUNCTION_END,),
    markers=(*PARAMETERS, PARAMETER_END, CDATA, CDATA_END),
    reasoning=Reasoning(begin="<think>", end="</think>"),
    structure=structure,
    samples=(
        Sample(
            title="a plain string, a number and a list",
            text='On it.\n<function name="weather"><param name="city">Köln</param><param name="days">3</param>'
            '<param name="hours">[1, 2.5]</param></function>',
            content="On it.",
            calls=(("weather", '{"city": "Köln", "days": 3, "hours": [1, 2.5]}'),),
        ),
        Sample(
            title="reasoning, then two calls: CDATA, entities, quotes of the other kind",
            text="<think>\nA note.\n</think>\n\n"
            '<function name="note"><param name="text"><![CDATA[if a < b:\n  c]]></param>'
            "</function><function name='note'><param name='text'>a &lt; b</param></function>",
            reasoning="A note.",
            calls=(("note", '{"text": "if a < b:\\n  c"}'), ("note", '{"text": "a < b"}')),
        ),
        Sample(
            title="all arguments in one parameter that the tool does not have",
            text='<function name="weather"><param name="properties">{"city": "Köln", "days": 3}</param></function>',
            calls=(("weather", '{"city": "Köln", "days": 3}'),),
        ),
    ),
)
