"""What an answer must look like: constraints on the text of a generation, neutral between the backends that enforce
them.

A frontend makes these records, from request fields or from a dialect's tools; the engine compiles them. They are
hashable: equal constraints share one compiled grammar.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

from penstock.errors import InvalidRequestError

MAX_CONSTRAINT_CHARACTERS = 1 << 20
"""Over all texts of one constraint."""

MAX_CHOICES = 10_000
MAX_TAGS = 1024
"""Also of triggers. As many as a request may have tools, each of which becomes a tag."""


class StructuredKind(Enum):
    JSON_SCHEMA = "json_schema"  # ``text``: a JSON schema as JSON; the order of its properties is that of the answer
    JSON_OBJECT = "json_object"  # any JSON object
    REGEX = "regex"  # ``text``: matches the whole answer, as if between ^ and $
    LARK = "lark"  # ``text``: rules in Lark's notation, from ``start`` on
    GBNF = "gbnf"  # ``text``: rules in llama.cpp's notation, from ``root`` on
    CHOICE = "choice"  # ``choices``: one of these texts
    TAGS = "structural_tags"  # ``tags``, with free text around them or not


_TEXT_KINDS = frozenset({StructuredKind.JSON_SCHEMA, StructuredKind.REGEX, StructuredKind.LARK, StructuredKind.GBNF})


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuralTag:
    """``begin``, then content of ``kind``, then ``end``. Texts of the model's special tokens in ``begin`` and ``end``
    stand for those tokens. Content is of any kind but CHOICE and TAGS; a LARK grammar may embed schemas with ``%json
    {...}``.
    """

    begin: str
    end: str = ""
    kind: StructuredKind = StructuredKind.JSON_OBJECT
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredSpec:
    """One constraint. Use the class methods; they check.

    ``after`` lets the answer begin with any text that ends where this text first occurs (the end of a model's
    reasoning); the constraint holds behind it. Empty: it holds from the first token. With ``opens`` such a text comes
    only where the answer begins with that (the start of a reasoning that a model may leave out).

    Tags come in groups: ``opening``, one tag or several with ``separator`` between them, ``closing``. With
    ``triggers``, text is free until one of them has been written; then a group must follow that begins with it, and the
    text behind the group is free again. Without triggers the answer is one group and nothing else. ``required`` asks
    for at least one tag and ``single`` for at most one. A trigger must begin ``opening`` + ``begin`` of at least one
    tag.
    """

    kind: StructuredKind
    text: str = ""
    choices: tuple[str, ...] = ()
    tags: tuple[StructuralTag, ...] = ()
    triggers: tuple[str, ...] = ()
    opening: str = ""
    separator: str = ""
    closing: str = ""
    required: bool = False
    single: bool = False
    after: str = ""
    opens: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidRequestError. Texts are not parsed here: what is wrong inside them is said when they
        compile."""
        for name in ("text", "opening", "separator", "closing", "after", "opens"):
            if not isinstance(getattr(self, name), str):
                raise _wrong(f"{name} of a constraint must be a text")
        if bool(self.text) != (self.kind in _TEXT_KINDS):
            raise _wrong(
                f"a constraint of kind {self.kind.value} {'needs' if self.kind in _TEXT_KINDS else 'has no'} text"
            )
        if bool(self.choices) != (self.kind is StructuredKind.CHOICE) or not all(self.choices):
            raise _wrong(
                "choices must be one or more texts, none of them empty, and only those of kind choice have them"
            )
        if bool(self.tags) != (self.kind is StructuredKind.TAGS):
            raise _wrong("tags must be one or more, and only constraints of kind structural_tags have them")
        if len(self.choices) > MAX_CHOICES:
            raise _wrong(f"choices are at most {MAX_CHOICES}, got {len(self.choices)}")
        if self.opens and not self.after:
            raise _wrong("a constraint with opens needs after, where what was opened ends")
        self._check_tags()
        if self.num_characters > MAX_CONSTRAINT_CHARACTERS:
            raise _wrong(
                f"a constraint has at most {MAX_CONSTRAINT_CHARACTERS} characters, this one has {self.num_characters}"
            )

    def _check_tags(self) -> None:
        for name in ("tags", "triggers"):
            if len(getattr(self, name)) > MAX_TAGS:
                raise _wrong(f"a constraint has at most {MAX_TAGS} {name}")
        for tag in self.tags:
            if not tag.begin:
                raise _wrong("a structural tag needs a begin")
            if tag.kind in (StructuredKind.CHOICE, StructuredKind.TAGS):
                raise _wrong(f"the content of a structural tag cannot be of kind {tag.kind.value}")
            if bool(tag.text) != (tag.kind in _TEXT_KINDS):
                raise _wrong(
                    f"content of kind {tag.kind.value} {'needs' if tag.kind in _TEXT_KINDS else 'has no'} text"
                )
        if self.triggers:
            self._check_triggers()

    def _check_triggers(self) -> None:
        """In sorted order a text is next to those that begin with it, and behind the shortest trigger that begins it:
        two searches for each, and not all with all."""
        begins = sorted(self.opening + tag.begin for tag in self.tags)
        shortest: list[str] = []
        for trigger in sorted(self.triggers):
            at = bisect_left(begins, trigger)
            if not trigger or at == len(begins) or not begins[at].startswith(trigger):
                raise _wrong(f"the trigger {trigger[:64]!r} must begin one of the structural tags")
            if not shortest or not trigger.startswith(shortest[-1]):
                shortest.append(trigger)
        for begin in begins:
            at = bisect_right(shortest, begin)
            if at == 0 or not begin.startswith(shortest[at - 1]):
                raise _wrong(f"the structural tag {begin[:64]!r} must begin with one of the triggers")

    @property
    def num_characters(self) -> int:
        pieces = [
            self.text,
            self.opening,
            self.separator,
            self.closing,
            self.after,
            self.opens,
            *self.choices,
            *self.triggers,
        ]
        return sum(map(len, pieces)) + sum(len(tag.begin) + len(tag.end) + len(tag.text) for tag in self.tags)

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str, *, after: str = "") -> StructuredSpec:
        """Answers are JSON that the schema accepts. ``schema`` is JSON text, or what ``json.loads`` makes of it."""
        return cls(kind=StructuredKind.JSON_SCHEMA, text=schema_text(schema), after=after)

    @classmethod
    def json_object(cls, *, after: str = "") -> StructuredSpec:
        return cls(kind=StructuredKind.JSON_OBJECT, after=after)

    @classmethod
    def regex(cls, pattern: str, *, after: str = "") -> StructuredSpec:
        return cls(kind=StructuredKind.REGEX, text=pattern, after=after)

    @classmethod
    def lark(cls, grammar: str, *, after: str = "") -> StructuredSpec:
        return cls(kind=StructuredKind.LARK, text=grammar, after=after)

    @classmethod
    def gbnf(cls, grammar: str, *, after: str = "") -> StructuredSpec:
        return cls(kind=StructuredKind.GBNF, text=grammar, after=after)

    @classmethod
    def grammar(cls, grammar: str, *, after: str = "") -> StructuredSpec:
        """Lark or GBNF, told apart by how a rule is written: GBNF writes ``name ::= ...``."""
        gbnf = any(_is_gbnf_rule(line) for line in grammar.splitlines()) if isinstance(grammar, str) else False
        return cls.gbnf(grammar, after=after) if gbnf else cls.lark(grammar, after=after)

    @classmethod
    def choice(cls, choices: Iterable[str], *, after: str = "", opens: str = "") -> StructuredSpec:
        if isinstance(choices, str) or not isinstance(choices, Iterable):
            raise _wrong("choices must be a list of texts")
        found = tuple(choices)
        if not all(isinstance(choice, str) for choice in found):
            raise _wrong("choices must be a list of texts")
        return cls(kind=StructuredKind.CHOICE, choices=tuple(dict.fromkeys(found)), after=after, opens=opens)

    @classmethod
    def structural_tags(cls, tags: Iterable[StructuralTag], **fields: Any) -> StructuredSpec:
        """``fields`` are those of the group: triggers, opening, separator, closing, required, single, after."""
        return cls(kind=StructuredKind.TAGS, tags=tuple(islice(tags, MAX_TAGS + 1)), **fields)


@dataclass(frozen=True, slots=True)
class ConstraintStats:
    """What an engine's constraints have cost since its start. ``num_compiled`` are grammars, ``num_refused``
    constraints that cannot be compiled, ``compile_s`` the seconds that both took on threads beside the core's;
    ``num_found`` requests met theirs in the cache, also while it was being compiled. ``masks_s``: seconds in filling
    ``num_masks`` token masks, on threads beside the core's."""

    num_compiled: int = 0
    num_refused: int = 0
    num_found: int = 0
    compile_s: float = 0.0
    num_masks: int = 0
    masks_s: float = 0.0


def schema_text(schema: Mapping[str, Any] | bool | str) -> str:
    """A schema as JSON text, its keys in their order. Raises InvalidRequestError for what is no JSON."""
    if isinstance(schema, str):
        return schema
    try:
        return json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _wrong(f"the schema is not JSON: {error}") from None
    except RecursionError:
        raise _wrong("the schema is nested too deeply") from None


def _is_gbnf_rule(line: str) -> bool:
    name, found, _ = line.partition("::=")
    return bool(found) and name.strip().replace("-", "").replace("_", "").isalnum()


def _wrong(sentence: str) -> InvalidRequestError:
    return InvalidRequestError(f"{sentence[0].upper()}{sentence[1:]}.", param="structured")
