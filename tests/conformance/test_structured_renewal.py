"""What answers teach a lexer that they share must not fail those that come after them."""

from __future__ import annotations

import random

import pytest
from test_structured_backends import VOCABULARY, allowed_by, text_of, write

from penstock.structured.backends import llguidance
from penstock.structured.backends.llguidance import Llguidance, LlguidanceGrammar
from penstock.structured.contract import ConstraintError
from penstock.types.structured import StructuredSpec

LETTERS = "abcdefghijklmnop"
TEXTS = ["".join(random.Random(seed).choices(LETTERS, k=20)) for seed in range(200)]
DEAR = StructuredSpec.regex("(.*a.{30}|.*b.{28}|.*c.{29})x")
NUM_STATES = 300  # an answer of one of the texts needs about 25


@pytest.fixture
def limited(monkeypatch):
    def compiled(spec: StructuredSpec, **limits) -> LlguidanceGrammar:
        monkeypatch.setattr(llguidance, "_LIMITS", {**llguidance._LIMITS, **limits})
        return Llguidance().prepare(VOCABULARY).compile(spec)

    return compiled


def test_no_answer_fails_because_of_those_before_it(limited):
    grammar = limited(StructuredSpec.choice(TEXTS), max_lexer_states=NUM_STATES)
    for seed in range(150):
        tokens, _ = write(grammar.open(), seed)
        assert text_of(tokens) in TEXTS
    assert grammar._current[0] > 5
    assert not grammar.is_spent


def test_answers_beside_each_other_go_on_where_they_were(limited):
    grammar = limited(StructuredSpec.choice(TEXTS), max_lexer_states=NUM_STATES)
    plain = limited(StructuredSpec.choice(TEXTS), max_lexer_states=50_000)
    pairs = [(grammar.open(), plain.open()) for _ in range(40)]
    chance = random.Random(1)
    for _ in range(20):
        for one, other in pairs:
            mask = one.fill()
            assert mask == other.fill()
            token_id = chance.choice(allowed_by(mask))
            drafts = [token_id, chance.choice(b"abc")]
            accepted = [one.accept(draft) for draft in drafts]
            assert accepted == [other.accept(draft) for draft in drafts]
            for session in (one, other):
                session.rollback(sum(accepted) - 1)
    assert all(one.is_terminated and one.accept(257) for one, _ in pairs)
    assert grammar._current[0] > 0


def test_an_answer_that_is_too_dear_by_itself_fails_alone(limited):
    grammar = limited(DEAR, step_lexer_fuel=500)

    def follow(session):
        for token_id in b"abcd" * 10:
            session.accept(token_id)
            session.fill()

    for _ in range(3):
        session = grammar.open()
        session.fill()
        with pytest.raises(ConstraintError, match="too many expressions"):
            follow(session)


def test_a_grammar_that_takes_long_to_make_is_spent(limited, monkeypatch):
    monkeypatch.setattr(llguidance, "RENEWAL_S", -1.0)
    grammar = limited(StructuredSpec.choice(TEXTS), max_lexer_states=NUM_STATES)

    def answer_many():
        for seed in range(150):
            write(grammar.open(), seed)

    with pytest.raises(ConstraintError, match="Send the request again"):
        answer_many()
    assert grammar.is_spent
