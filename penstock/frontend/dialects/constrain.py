"""From the calls that a request wants to a constraint on the answer's text, in the form that the engine takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from penstock.frontend.dialects.contract import Dialect, Reading, TagGroup, Tool
from penstock.frontend.dialects.value_grammar import check_size
from penstock.types.structured import MAX_CONSTRAINT_CHARACTERS, StructuredSpec


def call_constraint(
    dialect: Dialect, tools: Sequence[Tool], reading: Reading, *, required: bool, single: bool
) -> StructuredSpec | None:
    """Calls of ``tools`` in this dialect and no other calls; None when the dialect has no grammar.

    ``required`` asks for a call: then the answer is calls alone, behind reasoning that the prompt has opened. Where a
    model may open reasoning by itself, text stays free before the first call, because its reasoning is such text.
    """
    if dialect.constrain is not None:
        return dialect.constrain(tools, reading, required)
    if dialect.structure is None:
        return None
    group = _bounded_group(dialect.structure, tools)
    reasoning = dialect.reasoning if reading.reads_reasoning else None
    may_think = reasoning is not None and not reading.in_reasoning
    return StructuredSpec.structural_tags(
        group.tags,
        triggers=group.triggers if may_think or not required else (),
        opening=group.opening,
        separator=group.separator,
        closing=group.closing,
        required=required,
        single=single,
        after=reasoning.end if reasoning is not None and reading.in_reasoning else "",
    )


def _bounded_group(structure: Callable[[Sequence[Tool]], TagGroup], tools: Sequence[Tool]) -> TagGroup:
    """``structure(tools)``, tool by tool: what is too long together is refused before all of it is made."""
    groups: list[TagGroup] = []
    num_left = MAX_CONSTRAINT_CHARACTERS
    for tool in tools:
        groups.append(structure((tool,)))
        num_left -= sum(len(tag.text) for tag in groups[-1].tags)
        check_size(num_left)
    return dataclasses.replace(
        groups[0],
        tags=tuple(tag for group in groups for tag in group.tags),
        triggers=tuple(dict.fromkeys(trigger for group in groups for trigger in group.triggers)),
    )


def before_content(dialect: Dialect | None, reading: Reading | None) -> tuple[str, str]:
    """What comes before a constraint on content holds, as ``opens`` and ``after`` of a StructuredSpec: reasoning that
    the prompt has opened, or that the model may open; both empty when it cannot think."""
    if dialect is None or reading is None:
        return "", ""
    if dialect.content_opening and (reading.in_reasoning or reading.reads_reasoning):
        return "", dialect.content_opening
    if dialect.reasoning is None or (not reading.reads_reasoning and not reading.in_reasoning):
        return "", ""
    return "" if reading.in_reasoning else dialect.reasoning.begin, dialect.reasoning.end
