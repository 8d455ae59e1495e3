"""How constraints become llguidance's grammars."""

from __future__ import annotations

import re

from penstock.structured import lark
from penstock.structured.contract import Vocabulary
from penstock.structured.lark import Content, SpecialTexts, write_grammar
from penstock.types.structured import StructuralTag, StructuredKind, StructuredSpec

NAMES = {2: "<a>", 3: "<a>>", 4: ""}


def vocabulary() -> Vocabulary:
    return Vocabulary(
        tokens=(b"x", b"", b"", b"", b""), special=frozenset({1, 2, 3, 4}), names=NAMES, end_ids=(1,), num_ids=5
    )


def test_special_texts_are_found_the_longest_first():
    texts = SpecialTexts(vocabulary())
    assert texts.split("x<a>y<a>>") == ["x", 2, "y", 3]
    assert texts.split("") == []
    assert texts.split("xy") == ["xy"]


def test_the_pattern_of_special_tokens_is_made_once_for_all_literals(monkeypatch):
    made = []
    monkeypatch.setattr(lark.re, "escape", lambda text: made.append(text) or re.sub(r"([<>])", r"\\\1", text))
    texts = SpecialTexts(vocabulary())
    spec = StructuredSpec.structural_tags(
        [StructuralTag(begin=f"<a>{i}", end="<a>", kind=StructuredKind.LARK, text='start: "<a>" "b"') for i in range(9)]
    )
    for _ in range(2):
        grammar = write_grammar(spec, texts, lambda _, text: Content(lark=text))
    assert grammar.count("<[2]>") == 27
    assert len(made) == 2
