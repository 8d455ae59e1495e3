"""Mistral v7: a list of calls as JSON objects behind ``[TOOL_CALLS]``. Tokenizers of version 2, 3 and 7."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.frontend.dialects.contract import Dialect, Evidence, Sample, TagGroup, Tool, needs
from penstock.frontend.dialects.json_calls import json_call_tag
from penstock.frontend.dialects.mistral_calls import ARGS, CALL_ID, REASONING, TOOL_CALLS, new_call_id, parse
from penstock.types.decision import Verdict


def detect(evidence: Evidence) -> Verdict:
    return needs(
        the_template_prints_a_list_of_calls_behind_TOOL_CALLS=evidence.prints_call(
            r'\[TOOL_CALLS\]\s*\[\{.*"TOOL".*"KEY": ?"VALUE".*\}\s*\]'
        )
    )


def structure(tools: Sequence[Tool]) -> TagGroup:
    tags = tuple(json_call_tag(tool, "", "") for tool in tools)
    return TagGroup(tags=tags, triggers=(TOOL_CALLS,), opening=f"{TOOL_CALLS}[", separator=", ", closing="]")


DIALECT = Dialect(
    name="mistral_v7",
    models="Mistral 7B v0.3, Mixtral 8x22B, Mistral Nemo, Mistral Large 2, Mistral Small 3 and 3.1, Ministral 8B",
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
            text='Let me see.[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln"}, "id": "a1b2c3d4e"}, '
            '{"name": "clock", "arguments": {}}]',
            content="Let me see.",
            calls=(("weather", '{"city": "Köln"}'), ("clock", "{}")),
        ),
        Sample(
            title="the form of version 11",
            text='[TOOL_CALLS]weather[CALL_ID]a1b2c3d4e[ARGS]{"city": "Köln"}',
            calls=(("weather", '{"city": "Köln"}'),),
        ),
        Sample(title="an empty list", text="[TOOL_CALLS][]"),
    ),
)
