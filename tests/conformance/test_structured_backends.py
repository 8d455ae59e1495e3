"""Backends of constrained output: what every one must do with a constraint that it takes.

The reference is Python: ``re``, ``json`` and the package jsonschema say which texts fit, and every mask is compared
with what the session accepts, token by token.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

import jsonschema
import pytest

from penstock.structured.contract import ConstraintError, GrammarCompiler, GrammarSession, StructuredNeed, Vocabulary
from penstock.structured.select import BACKENDS, choose_structured, installed_packages
from penstock.types.structured import StructuralTag, StructuredKind, StructuredSpec

SPECIAL = {"<|call|>": 256, "</s>": 257, "<|end|>": 258}
WORDS = ('{"', '":', '", "', "tr", "ue", "12", "  ", "e{", "a!", "yes")
VOCABULARY = Vocabulary(
    tokens=(*(bytes([value]) for value in range(256)), b"", b"", b"", *(word.encode() for word in WORDS)),
    special=frozenset(SPECIAL.values()),
    names={token_id: name for name, token_id in SPECIAL.items()},
    end_ids=(257, 258),
    num_ids=300,  # wider than the tokenizer, as padded models are
)
Fits = Callable[[str], bool]
SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": -5, "maximum": 20},
        "s": {"type": "string"},
        "l": {"type": "array", "items": {"enum": ["a", "é", 1]}, "maxItems": 3},
        "o": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["n", "s", "l", "o"],
    "additionalProperties": False,
}
TAG = StructuralTag(begin="e{", kind=StructuredKind.REGEX, text="[0-9]{2}", end="}")


def by_regex(pattern: str) -> Fits:
    return lambda text: re.fullmatch(pattern, text, re.DOTALL) is not None


def by_schema(schema: object) -> Fits:
    def fits(text: str) -> bool:
        try:
            jsonschema.validate(json.loads(text), schema)
        except (ValueError, jsonschema.ValidationError):
            return False
        return True

    return fits


CASES: dict[str, tuple[StructuredSpec, Fits]] = {
    "json schema": (StructuredSpec.json_schema(SCHEMA), by_schema(SCHEMA)),
    "json object": (StructuredSpec.json_object(), lambda text: isinstance(json.loads(text), dict)),
    "regex": (StructuredSpec.regex(r"[a-c]{2,5}(-\d+)?"), by_regex(r"[a-c]{2,5}(-[0-9]+)?")),
    "choice": (StructuredSpec.choice(["yes", "no", 'a "b"\n', "é"]), by_regex('yes|no|a "b"\n|é')),
    "lark": (StructuredSpec.lark('start: "x" item+\nitem: /[0-9]/ "," | "y"'), by_regex(r"x([0-9],|y)+")),
    "gbnf": (StructuredSpec.gbnf('root ::= "x" item+\nitem ::= [0-9] "," | "y"'), by_regex(r"x([0-9],|y)+")),
    "tags alone": (
        StructuredSpec.structural_tags([TAG], opening="[", separator=",", closing="]"),
        by_regex(r"\[e\{[0-9]{2}\}(,e\{[0-9]{2}\})*\]"),
    ),
    "tags within text": (
        StructuredSpec.structural_tags([TAG], triggers=("e{",)),
        by_regex(r"([^e]|e(?!\{)|e\{[0-9]{2}\})*"),
    ),
    "one tag at least": (
        StructuredSpec.structural_tags([TAG], triggers=("e{",), required=True),
        by_regex(r"([^e]|e(?!\{)|e\{[0-9]{2}\})*e\{[0-9]{2}\}([^e]|e(?!\{)|e\{[0-9]{2}\})*"),
    ),
    "behind a reasoning": (StructuredSpec.choice(["yes"], after="a!"), by_regex(r"([^a]|a(?!!))*a!\n{0,2}yes")),
    "with or without a reasoning": (
        StructuredSpec.choice(["yes"], after="a!", opens="e{"),
        by_regex(r"(e\{([^a]|a(?!!))*a!\n{0,2})?yes"),
    ),
}


@pytest.fixture(params=tuple(BACKENDS))
def compiler(request) -> GrammarCompiler:
    backend = BACKENDS[request.param]
    verdict = backend.can_run(StructuredNeed(packages=installed_packages()))
    if not verdict.ok:
        pytest.skip(f"{backend.name}: {'; '.join(verdict.reasons)}")
    return backend.prepare(VOCABULARY)


def allowed_by(mask: bytes) -> list[int]:
    return [token_id for token_id in range(VOCABULARY.num_ids) if mask[token_id // 8] >> token_id % 8 & 1]


def write(session: GrammarSession, seed: int, longest: int = 60) -> tuple[list[int], bool]:
    """Random tokens under the masks; whether an end token came."""
    chance = random.Random(seed)
    tokens: list[int] = []
    while len(tokens) < longest:
        allowed = allowed_by(session.fill())
        assert allowed, tokens
        ends = [token_id for token_id in allowed if token_id in VOCABULARY.end_ids]
        if ends and chance.random() < 0.3:
            assert session.accept(chance.choice(ends))
            assert session.is_terminated
            return tokens, True
        rest = [token_id for token_id in allowed if token_id not in ends]
        if not rest:
            assert session.is_terminated
            return tokens, True
        token_id = chance.choice(rest)
        assert session.accept(token_id)
        tokens.append(token_id)
    return tokens, False


def text_of(tokens: list[int]) -> str:
    return b"".join(VOCABULARY.tokens[token_id] for token_id in tokens).decode("utf-8", "replace")


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_under_the_masks_fits(compiler, name):
    spec, fits = CASES[name]
    grammar = compiler.compile(spec)
    ended = 0
    for seed in range(40):
        tokens, complete = write(grammar.open(), seed, longest=250)
        if complete:
            ended += 1
            text = text_of(tokens)
            assert "\ufffd" in text or fits(text), text
    assert ended


@pytest.mark.parametrize("name", CASES)
def test_masks_are_exactly_what_is_accepted(compiler, name):
    grammar = compiler.compile(CASES[name][0])
    session = grammar.open()
    chance = random.Random(1)
    for _ in range(12):
        mask = session.fill()
        assert len(mask) == VOCABULARY.mask_bytes
        allowed = allowed_by(mask)
        for token_id in range(VOCABULARY.num_ids):
            accepted = token_id < len(VOCABULARY.tokens) and session.accept(token_id)
            assert accepted == (token_id in allowed), token_id
            if accepted:
                session.rollback(1)
        assert session.fill() == mask
        going_on = [token_id for token_id in allowed if token_id not in VOCABULARY.end_ids]
        if not going_on:
            break
        assert session.accept(chance.choice(going_on))


@pytest.mark.parametrize("name", CASES)
def test_rolling_back_is_as_if_it_had_never_been(compiler, name):
    grammar = compiler.compile(CASES[name][0])
    for seed in range(10):
        session, plain = grammar.open(), grammar.open()
        chance = random.Random(seed)
        for _ in range(15):
            ahead: list[int] = []
            for _ in range(chance.randrange(5)):
                allowed = allowed_by(session.fill())
                token_id = chance.choice(allowed)
                assert session.accept(token_id)
                ahead.append(token_id)
                if token_id in VOCABULARY.end_ids:
                    break
            session.rollback(len(ahead))
            mask = session.fill()
            assert mask == plain.fill()
            going_on = [t for t in allowed_by(mask) if t not in VOCABULARY.end_ids]
            if not going_on:
                break
            token_id = chance.choice(going_on)
            assert session.accept(token_id)
            assert plain.accept(token_id)


def test_what_is_refused_changes_nothing(compiler):
    session = compiler.compile(StructuredSpec.regex("abc")).open()
    assert session.accept(ord("a"))
    before = session.fill()
    for token_id in (ord("x"), 257, 256, 299):
        assert not session.accept(token_id)
    assert session.fill() == before
    assert session.accept(ord("b"))


def test_special_tokens_match_no_text(compiler):
    session = compiler.compile(StructuredSpec.regex("[^b]*")).open()
    allowed = allowed_by(session.fill())
    assert 256 not in allowed
    assert {257, 258} <= set(allowed)
    session = compiler.compile(StructuredSpec.json_schema({"type": "string"})).open()
    assert session.accept(ord('"'))
    assert not {256, 257, 258} & set(allowed_by(session.fill()))


def test_sessions_of_one_grammar_do_not_touch_each_other(compiler):
    grammar = compiler.compile(StructuredSpec.regex("[ab]{3}"))
    one, other = grammar.open(), grammar.open()
    first = other.fill()
    for letter in b"aba":
        assert one.accept(letter)
    assert one.is_terminated
    assert not other.is_terminated
    assert other.fill() == first


@pytest.mark.parametrize(
    "spec",
    [
        StructuredSpec.json_schema({"type": "object", "not": {}}),
        StructuredSpec.json_schema({"type": "object", "dependentRequired": {"a": ["b"]}}),
        StructuredSpec.json_schema("{"),
        StructuredSpec.regex("["),
        StructuredSpec.gbnf("root ::= nothing"),
        StructuredSpec.lark("start: nothing"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_a_sentence(compiler, spec):
    with pytest.raises(ConstraintError) as raised:
        compiler.compile(spec)
    assert len(str(raised.value)) > 20


def test_tags_with_special_tokens():
    """Texts of special tokens in tags stand for those tokens. Only llguidance does that."""
    compiler = BACKENDS["llguidance"].prepare(VOCABULARY)
    tag = StructuralTag(begin="<|call|>f:", kind=StructuredKind.REGEX, text="[0-9]+", end="<|call|>")
    session = compiler.compile(StructuredSpec.structural_tags([tag], triggers=("<|call|>",), required=True)).open()
    for token_id in b"free":
        assert session.accept(token_id)
    assert 257 not in allowed_by(session.fill())  # a tag is still owed
    for token_id in (256, *b"f:"):
        assert session.accept(token_id)
    assert allowed_by(session.fill()) == [*range(ord("0"), ord("9") + 1), VOCABULARY.tokens.index(b"12")]
    for token_id in (ord("1"), 256):
        assert session.accept(token_id)
    assert {257, ord("x"), 256} <= set(allowed_by(session.fill()))


def test_a_named_backend_runs_or_is_an_error(monkeypatch):
    from penstock.errors import NoBackendError
    from penstock.structured import select

    assert choose_structured("llguidance")[1].why == "named by --structured-backend"
    monkeypatch.setattr(select, "installed_packages", lambda: frozenset({"llguidance", "torch"}))
    assert choose_structured()[0].name == "llguidance"
    with pytest.raises(NoBackendError, match="needs the package xgrammar") as raised:
        choose_structured("xgrammar")
    (rejection,) = raised.value.decision.rejected
    assert [("transformers" in reason) or ("xgrammar" in reason) for reason in rejection.reasons] == [True, True]
    with pytest.raises(NoBackendError, match="no candidate named"):
        choose_structured("outlines")
