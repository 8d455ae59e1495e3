"""Mistral v11: each call behind its own ``[TOOL_CALLS]``, with name, id and arguments. Tokenizers of version 11."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.mistral_calls import (
    ARGS,
    CALL_ID,
    ID_LENGTH,
    REASONING,
    TOOL_CALLS,
    new_call_id,
    parse,
    prints_named_call,
)
from penstock.types.decision import Verdict
from penstock.types.structured import StructuralTag, StructuredKind, schema_text


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_name_id_and_arguments_behind_TOOL_CALLS=prints_named_call(
            evidence, r"\[CALL_ID\]\w+\[ARGS\]"
        )
    )


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(
        StructuralTag(
            begin=f"{TOOL_CALLS}{tool.name}{CALL_ID}",
            kind=StructuredKind.LARK,
            text=f'start: ID "{ARGS}" %json {schema_text(tool.parameters)}\nID: /[a-zA-Z0-9]{{{ID_LENGTH}}}/\n',
        )
        for tool in tools
    )
    return TagGroup(tags=tags, triggers=(TOOL_CALLS,))


DIALECT = Dialect(
    name="mistral_v11",
    models="Mistral Small 3.2, Mistral Medium 3",
    detect=detect,
    triggers=(TOOL_CALLS,),
    parse=parse,
    markers=(CALL_ID, ARGS),
    reasoning=REASONING,
    gap="",
    new_call_id=new_call_id,
    structure=structure,
    samples=(
        Sample(
            title="two calls behind content",
            text='Let me see.[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Köln"}'
            "[TOOL_CALLS]clock[CALL_ID]a1b2c3d4f[ARGS]{}",
            content="Let me see.",
            calls=(("weather", '{"city": "Köln"}'), ("clock", "{}")),
        ),
        Sample(
            title="without an id, and without any mark",
            text='[TOOL_CALLS]clock[ARGS]{}[TOOL_CALLS]weather{"city": "a"}',
            calls=(("clock", "{}"), ("weather", '{"city": "a"}')),
        ),
    ),
)
