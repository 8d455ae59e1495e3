"""Grammars for the byte tokenizer, and what to drive them with."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from penstock.engine.constraining import vocabulary_of
from penstock.engine.mock_engine import mock_facts
from penstock.engine.mock_text import mock_assets
from penstock.mock.tokenizer import ByteTokenizer
from penstock.structured.backends.llguidance import Llguidance
from penstock.structured.constraints import Constraints
from penstock.structured.contract import CompiledGrammar, ConstraintError, GrammarCompiler, Vocabulary
from penstock.structured.grammar_cache import CompileLimits
from penstock.types.decision import YES
from penstock.types.structured import StructuredKind, StructuredSpec

END = ByteTokenizer.eos_token_id
HERE = CompileLimits(trials=False)


def byte_vocabulary() -> Vocabulary:
    return vocabulary_of(mock_assets(), mock_facts().vocab_size)


@dataclass
class GatedBackend:
    """llguidance, but compiles only what the gate lets through; ``compiled`` counts. Text "broken" is refused, "crash"
    raises what no backend should."""

    name: str = "llguidance"
    kinds: frozenset[StructuredKind] = frozenset(StructuredKind)
    gate: threading.Event = field(default_factory=threading.Event)
    compiled: list[StructuredSpec] = field(default_factory=list)
    outgrown_after: int | None = None  # masks

    def can_run(self, need):
        return YES

    def prepare(self, vocabulary: Vocabulary) -> GrammarCompiler:
        self._inner = Llguidance().prepare(vocabulary)
        return self

    def compile(self, spec: StructuredSpec) -> CompiledGrammar:
        assert self.gate.wait(20)
        self.compiled.append(spec)
        if spec.text == "broken":
            raise ConstraintError("It is broken.")
        if spec.text == "crash":
            raise RuntimeError("out of luck")
        grammar = self._inner.compile(spec)
        return grammar if self.outgrown_after is None else OutgrownGrammar(grammar, self.outgrown_after)


class OutgrownGrammar:
    """Has its limits reached after some masks."""

    is_spent = False

    def __init__(self, grammar, num_masks):
        self._grammar, self._num_masks = grammar, num_masks

    def open(self):
        return OutgrownSession(self._grammar.open(), self._num_masks)


class OutgrownSession:
    def __init__(self, session, num_masks):
        self._session, self._left = session, num_masks

    @property
    def is_terminated(self):
        return self._session.is_terminated

    def fill(self):
        self._left -= 1
        if self._left < 0:
            raise ConstraintError("The grammar has outgrown its limits.")
        return self._session.fill()

    def accept(self, token_id):
        return self._session.accept(token_id)

    def rollback(self, num_tokens):
        self._session.rollback(num_tokens)


def make_constraints(backend=None, limits=HERE, **options) -> Constraints:
    return Constraints(backend or Llguidance(), byte_vocabulary, limits=limits, **options)
