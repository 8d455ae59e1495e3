"""Mistral v13: each call behind its own ``[TOOL_CALLS]``, with name and arguments. Tokenizers from version 13 on."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.json_calls import arguments_tag
from penstock.frontend.dialects.mistral_calls import (
    ARGS,
    CALL_ID,
    REASONING,
    TOOL_CALLS,
    new_call_id,
    parse,
    prints_named_call,
)
from penstock.types.decision import Verdict


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_call_as_name_and_arguments_behind_TOOL_CALLS=prints_named_call(evidence, r"\[ARGS\]")
    )


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(arguments_tag(tool, f"{TOOL_CALLS}{tool.name}{ARGS}", "") for tool in tools)
    return TagGroup(tags=tags, triggers=(TOOL_CALLS,))


DIALECT = Dialect(
    name="mistral_v13",
    models="Magistral, Devstral, Ministral 3, Mistral Large 3",
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
            title="reasoning, content and two calls",
            text='[THINK]Both, then.[/THINK]Let me see.[TOOL_CALLS]weather[ARGS]{"city": "Köln"}'
            "[TOOL_CALLS]clock[ARGS]{}",
            reasoning="Both, then.",
            content="Let me see.",
            calls=(("weather", '{"city": "Köln"}'), ("clock", "{}")),
        ),
        Sample(
            title="the form of version 7",
            text='[TOOL_CALLS][{"name": "weather", "arguments": {"city": "a"}}]',
            calls=(("weather", '{"city": "a"}'),),
        ),
    ),
)
