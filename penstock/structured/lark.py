"""Constraints as llguidance writes grammars: Lark rules with schemas inside, several grammars in one JSON list.

Texts of special tokens become those tokens (``<[id]>``), because a special token matches no text. Knows no tokenizer
beyond that, and compiles nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from penstock.structured.contract import ConstraintError, Vocabulary
from penstock.types.structured import StructuralTag, StructuredKind, StructuredSpec, lark_literal

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""What may stand where JSON allows whitespace. Bounded: small models write newlines until they are cut off."""

ANY_TEXT = r"/(.|\n)*/"

_LITERAL_OR_SCHEMA = re.compile(
    r'(?P<lazy>\w+\[lazy\][^\n]*)|(?P<literal>"(?:[^"\\\n]|\\.)*")|(?P<schema>%json\s*)(?=[{])|/(?:[^/\\\n]|\\.)+/|//[^\n]*'
)
_LAZY_UNTIL = re.compile(r'(?P<name>\w+)\[lazy\]: */\(\.\|\\n\)\*/ *(?P<end>"(?:[^"\\]|\\.)*") *')
_SIGNS = re.compile(r"([\\.+*?()|\[\]{}^$/])")
_DECODER = json.JSONDecoder()

ContentOf = Callable[[StructuredKind, str], "Content"]


class Content:
    """The grammar of one content: ``inline`` is an expression within a Lark rule, or ``grammar`` a whole one."""

    def __init__(self, *, inline: str = "", lark: str = "") -> None:
        self.inline = inline
        self.lark = lark


class GrammarList:
    """The grammars of one constraint, the outermost first."""

    def __init__(self) -> None:
        self._rules: list[str] = []
        self._inner: list[tuple[str, str]] = []

    def rule(self, line: str) -> None:
        self._rules.append(line)

    def place(self, content: Content) -> str:
        """The expression that stands for ``content`` in a rule."""
        if content.inline:
            return content.inline
        name = f"inner_{len(self._inner)}"
        self._inner.append((name, content.lark))
        return f"@{name}"

    def text(self) -> str:
        grammars = [{"name": "answer", "lark_grammar": "\n".join(self._rules) + "\n"}]
        grammars += [{"name": name, "lark_grammar": lark} for name, lark in self._inner]
        return json.dumps({"grammars": grammars})


class SpecialTexts:
    """A vocabulary, and where the texts of its special tokens are in a text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        named = ((vocabulary.names.get(token_id), token_id) for token_id in vocabulary.special)
        self._ids = {name: token_id for name, token_id in named if name}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if self._ids else None

    def split(self, text: str) -> list[str | int]:
        """A text as texts and ids of special tokens, in order."""
        if self._pattern is None:
            return [text] if text else []
        return [self._ids.get(piece, piece) for piece in self._pattern.split(text) if piece]


def write_grammar(spec: StructuredSpec, texts: SpecialTexts, content_of: ContentOf) -> str:
    """llguidance's grammar for ``spec``. ``content_of`` gives the grammar of a text of one kind. Raises
    ConstraintError."""
    grammar = GrammarList()
    # Any tokens that spell an answer will do: the library would else ask a tokenizer for the one right spelling.
    grammar.rule('%llguidance {"no_forcing": true}')
    if spec.kind is StructuredKind.TAGS:
        writer = _TagWriter(spec, texts, grammar, content_of)
        main = writer.free() if spec.triggers else writer.group()
        if spec.otherwise is not None:
            main = f"({main} | {_write_plain(spec.otherwise, grammar, content_of)})"
    else:
        main = _write_plain(spec, grammar, content_of)
    if spec.after:
        _write_before(spec.after, texts, grammar)
        opening = " ".join(_terms(texts.split(spec.opens)))
        main = f"({opening} before BREAK?)? {main}" if opening else f"before BREAK? {main}"
        grammar.rule(r"BREAK: /\n{1,2}/")
    grammar.rule(f"start: {main}")
    return grammar.text()


def _write_plain(spec: StructuredSpec, grammar: GrammarList, content_of: ContentOf) -> str:
    """The expression for a form without tags."""
    if spec.kind is StructuredKind.CHOICE:
        grammar.rule("CHOICE: " + " | ".join(map(lark_literal, spec.choices)))
        return "CHOICE"
    return grammar.place(content_of(spec.kind, spec.text))


def _write_before(after: str, texts: SpecialTexts, grammar: GrammarList) -> None:
    """Any text up to and including the first ``after``."""
    first, *rest = texts.split(after)
    if isinstance(first, int):
        grammar.rule(
            f"before: {' '.join([_free_texts(grammar, texts.vocabulary, {first}), f'<[{first}]>', *_terms(rest)])}"
        )
    else:
        grammar.rule(f"before_text[lazy]: FREE {lark_literal(first)}")
        grammar.rule(f"FREE: {ANY_TEXT}")
        grammar.rule(f"before: {' '.join(['before_text', *_terms(rest)])}")


class _TagWriter:
    def __init__(self, spec: StructuredSpec, texts: SpecialTexts, grammar: GrammarList, content_of: ContentOf) -> None:
        self._spec = spec
        self._texts = texts
        self._grammar = grammar
        self._contents = [
            grammar.place(
                Content(lark=_bound(tag.text, texts, content_of))
                if tag.kind is StructuredKind.LARK
                else content_of(tag.kind, tag.text)
            )
            for tag in spec.tags
        ]

    def group(self) -> str:
        """One group and nothing else."""
        self._write_tags()
        spec = self._spec
        more = "" if spec.single else self._more()
        return " ".join(
            part for part in (self._literal(spec.opening), "tag", more, self._literal(spec.closing)) if part
        )

    def free(self) -> str:
        """Free text, groups behind their triggers, free text."""
        spec, grammar = self._spec, self._grammar
        self._write_tags()
        specials = {trigger: self._texts.split(trigger) for trigger in spec.triggers}
        ends = {pieces[-1] for pieces in specials.values() if isinstance(pieces[-1], int)}
        free = _free_texts(grammar, self._texts.vocabulary, ends)
        groups = []
        for index, (trigger, pieces) in enumerate(specials.items()):
            if len(pieces) > 2 or (len(pieces) == 2 and isinstance(pieces[0], int)):
                raise ConstraintError(
                    f"The trigger {trigger!r} has text behind a special token. End it with the special token, or "
                    "write the whole format as a Lark grammar."
                )
            first, last = pieces[0], pieces[-1]
            if isinstance(last, int):  # it tells by itself; text before it is free text like any other
                head = f"{free} <[{last}]>"
            else:
                assert isinstance(first, str)
                grammar.rule(f"trigger_{index}[lazy]: FREE {lark_literal(first)}")
                head = f"{free.removesuffix(' FREE')} trigger_{index}" if free != "FREE" else f"trigger_{index}"
            grammar.rule(f"group_{index}: {head} ({self._behind(trigger)})")
            groups.append(f"group_{index}")
        times = "" if spec.required and spec.single else "+" if spec.required else "?" if spec.single else "*"
        grammar.rule(f"last: {free}")
        return f"({' | '.join(groups)}){times} last"

    def _behind(self, trigger: str) -> str:
        """What follows a trigger: the rest of each group that it begins."""
        spec = self._spec
        grouped = bool(spec.opening or spec.closing)
        ways = []
        for index, tag in enumerate(spec.tags):
            begin = spec.opening + tag.begin
            if begin.startswith(trigger):
                more = self._more() if grouped and not spec.single else ""
                parts = (
                    self._literal(begin[len(trigger) :]),
                    self._body(index, tag),
                    more,
                    self._literal(spec.closing),
                )
                ways.append(" ".join(part for part in parts if part))
        return " | ".join(ways)

    def _write_tags(self) -> None:
        for index, tag in enumerate(self._spec.tags):
            parts = (self._literal(tag.begin), self._body(index, tag))
            self._grammar.rule(f"tag_{index}: {' '.join(part for part in parts if part)}")
        self._grammar.rule("tag: " + " | ".join(f"tag_{index}" for index in range(len(self._spec.tags))))

    def _body(self, index: int, tag: StructuralTag) -> str:
        return " ".join(part for part in (self._contents[index], self._literal(tag.end)) if part)

    def _more(self) -> str:
        separator = self._literal(self._spec.separator)
        return f"({separator} tag)*" if separator else "tag*"

    def _literal(self, text: str) -> str:
        return " ".join(_terms(self._texts.split(text)))


def _bound(text: str, specials: SpecialTexts, content_of: ContentOf) -> str:
    """The Lark rules of a tag's content with its embedded schemas checked as others are, and with special tokens for
    their texts in literals. Of lazy rules only those for any text up to a literal can have special tokens; in others,
    which match text alone, the model spells such a text."""
    parts: list[str] = []
    at = 0
    while (found := _LITERAL_OR_SCHEMA.search(text, at)) is not None:
        parts.append(text[at : found.start()])
        at = found.end()
        if found["literal"] is not None:
            pieces = _split_literal(found["literal"], specials)
            parts.append(" ".join(_terms(pieces)) if any(isinstance(one, int) for one in pieces) else found["literal"])
        elif found["schema"] is not None:
            schema, at = _DECODER.raw_decode(text, at)
            parts.append(content_of(StructuredKind.JSON_SCHEMA, json.dumps(schema)).inline)
        elif found["lazy"] is not None:
            parts.append(_bound_lazy(found["lazy"], specials))
        else:
            parts.append(found.group())
    return "".join(parts) + text[at:]


def _bound_lazy(rule: str, specials: SpecialTexts) -> str:
    """A rule for any text up to a literal: a special token in that literal ends the text by itself, since no text
    matches it."""
    found = _LAZY_UNTIL.fullmatch(rule)
    pieces = _split_literal(found["end"], specials) if found is not None else []
    first = next((position for position, one in enumerate(pieces) if isinstance(one, int)), None)
    if found is None or first is None:
        return rule
    before = _SIGNS.sub(r"\\\1", "".join(map(str, pieces[:first]))).replace("\n", r"\n")
    return rf"{found['name']}: /(.|\n)*{before}/ {' '.join(_terms(pieces[first:]))}"


def _split_literal(literal: str, specials: SpecialTexts) -> list[str | int]:
    """A Lark string literal as texts and ids of special tokens; empty for one that is not written as in JSON."""
    try:
        return specials.split(json.loads(literal))
    except ValueError:
        return []


def _terms(pieces: Sequence[str | int]) -> list[str]:
    return [f"<[{piece}]>" if isinstance(piece, int) else lark_literal(piece) for piece in pieces]


def _free_texts(grammar: GrammarList, vocabulary: Vocabulary, but: set[int]) -> str:
    """Text, and special tokens within it other than ``but`` and those that end an answer. Ends with the rule FREE."""
    others = sorted(vocabulary.special - but - set(vocabulary.end_ids))
    grammar.rule(f"FREE: {ANY_TEXT}")
    if not others:
        return "FREE"
    grammar.rule(f"special: <[{','.join(map(str, others))}]>")
    return "(FREE special)* FREE"
