"""What a dialect is. One file per dialect makes one of these records; ``table`` lists them.

A dialect says how it is recognised, which texts matter, how a call is read, and how it would be constrained. It keeps
no buffer, counts no index and catches nothing: that is ``machine`` and ``tagged``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.frontend.dialects.cursor import Cursor, Steps
from penstock.frontend.dialects.writer import Writer, openai_call_id
from penstock.types.decision import YES, Verdict
from penstock.types.structured import StructuralTag, StructuredSpec

PROBE_TOOL = "penstock_probe"
PROBE_KEY = "penstock_key"
PROBE_VALUE = "penstock_value"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a model's text side. ``templates`` is the source of its chat templates, joined. ``call_text``
    is a rendered conversation that ends with one call of PROBE_TOOL with {PROBE_KEY: PROBE_VALUE}; empty when the
    template refuses it. ``has_token`` says whether a text is one token by itself."""

    templates: str
    call_text: str
    has_token: Callable[[str], bool]

    def mentions(self, text: str) -> bool:
        return text in self.templates

    def prints_call(self, pattern: str) -> bool:
        """Whether the rendered call matches; the words TOOL, KEY and VALUE in ``pattern`` stand for the probe's."""
        for word, probe in (("TOOL", PROBE_TOOL), ("KEY", PROBE_KEY), ("VALUE", PROBE_VALUE)):
            pattern = re.sub(rf"\b{word}\b", probe, pattern)
        return re.search(pattern, self.call_text) is not None


def needs(**facts: bool) -> Verdict:
    """A verdict from facts that must all hold; underscores of a name are spaces of the reason.

    ``needs(the_template_prints_calls_in_tags=False)`` refuses with "not so: the template prints calls in tags".
    """
    missing = tuple(f"not so: {name.replace('_', ' ')}" for name, holds in facts.items() if not holds)
    return Verdict(missing) if missing else YES


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """The texts around reasoning. It opens where an answer, or what follows a call or other reasoning, begins; or the
    prompt has opened it. With ``ends_at_call`` a call of a tool that the request has closes it, too, for models that
    forget to; else no call is read inside reasoning. With ``may_be_closed`` an answer without reasoning may begin
    with ``end``, which is no content. ``is_undeclared``: neither template nor tokenizer shows the tags."""

    begin: str
    end: str
    ends_at_call: bool = False
    may_be_closed: bool = False
    is_undeclared: bool = False

    def left_open(self, text: str) -> bool:
        """Whether ``text`` is inside reasoning at its end."""
        return text.rfind(self.begin) > text.rfind(self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool of a request. ``parameters`` is a JSON schema; without one any object will do."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TagGroup:
    """The texts of calls, for constrained output. ``opening``, one tag per call with ``separator`` between them,
    ``closing``. A model that writes one of ``triggers`` has begun a group; each begins ``opening`` + a tag. What
    depends on the tools is tags and triggers alone."""

    tags: tuple[StructuralTag, ...]
    triggers: tuple[str, ...]
    opening: str = ""
    separator: str = ""
    closing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Output of a model in this dialect, and what it says: the shortest documentation, and a test."""

    title: str
    text: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()  # name, arguments as JSON text exactly as they come out
    in_reasoning: bool = False  # the prompt has opened reasoning


ParseCalls = Callable[[Cursor, Writer, str], Steps[None]]
"""Reads what follows a trigger (third argument) to the end of the call or of the section of calls, and writes it.

Raises Malformed (most primitives of the cursor do) when the text is something else. Nothing needs to be undone: what
has been written stays, a call that is open becomes incomplete, everything that was read since comes back as content.
"""

Constrain = Callable[[Sequence[Tool], "Reading", bool], StructuredSpec | None]
ReadAnswer = Callable[[Cursor, Writer, "Reading"], Steps[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What reading one answer needs to know of its request. Empty ``tools`` mean that no call is read."""

    tools: Mapping[str, Mapping[str, Any]]
    in_reasoning: bool = False
    reads_reasoning: bool = True
    max_calls: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one family of models writes tool calls and reasoning.

    ``triggers`` open a call anywhere in content, ``start_triggers`` only where content would begin. When a call breaks
    down behind its name, everything up to the next of ``resync`` is content, with that text; without ``resync``, and
    behind a trigger with no call, reading goes on at once.
    ``markers`` are further texts that may be special tokens of the tokenizer and must not be hidden from the parser;
    triggers, resync texts and reasoning tags are markers by themselves. ``gap`` is what the template writes between
    content and the first call. ``content_opening`` is the text behind which content begins, where it does not begin
    with the answer; a constraint on content holds behind it. ``read`` replaces the whole tagged reading, for a dialect
    in which content and reasoning are not text with calls in it; ``constrain`` replaces ``structure`` there: a
    constraint on the whole answer, from the tools, the reading and whether a call is required.
    """

    name: str
    models: str
    detect: Callable[[Evidence], Verdict]
    triggers: tuple[str, ...] = ()
    start_triggers: tuple[str, ...] = ()
    parse: ParseCalls | None = None
    resync: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    reasoning: Reasoning | None = None
    gap: str = "\n"
    content_opening: str = ""
    new_call_id: Callable[[str, int], str] = openai_call_id
    structure: Callable[[Sequence[Tool]], TagGroup] | None = None
    constrain: Constrain | None = None
    read: ReadAnswer | None = None
    samples: tuple[Sample, ...] = ()

    def can_run(self, evidence: Evidence, /) -> Verdict:
        """A dialect is a candidate of the oracle."""
        return self.detect(evidence)

    @property
    def reads_calls(self) -> bool:
        return self.parse is not None or self.read is not None

    def visible_texts(self) -> frozenset[str]:
        """All texts that a parser must see even where they are special tokens."""
        tags = (self.reasoning.begin, self.reasoning.end) if self.reasoning is not None else ()
        return frozenset((*self.triggers, *self.start_triggers, *self.resync, *self.markers, *tags))
