"""What a backend of constrained output is: it compiles a constraint for a vocabulary, and opens sessions on the
result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from penstock.types.decision import Verdict
from penstock.types.structured import StructuredKind, StructuredSpec


class ConstraintError(Exception):
    """A constraint cannot be compiled, or cannot be followed further: a sentence for whoever asked for it. Never leaves
    this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokens of one model, as grammars see them.

    ``tokens[i]`` are the bytes that token i adds to a text, empty for none. ``special`` ids stand for themselves and
    match no text; ``names`` has their texts. ``end_ids`` end an answer, the first one foremost. ``num_ids`` is the
    width of the model's logits: masks have one bit per id below it.
    """

    tokens: tuple[bytes, ...]
    special: frozenset[int]
    names: dict[int, str]
    end_ids: tuple[int, ...]
    num_ids: int

    @property
    def mask_bytes(self) -> int:
        """Bytes of a mask: one bit per id, in little-endian 32-bit words."""
        return (self.num_ids + 31) // 32 * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredNeed:
    """What the oracle asks a backend. ``packages`` are those that are installed, of the ones that any backend names."""

    packages: frozenset[str]


class GrammarSession(Protocol):
    """One answer on its way through a grammar. Used by one thread at a time."""

    @property
    def is_terminated(self) -> bool:
        """Nothing but an end token may follow, or one has been accepted."""

    def fill(self) -> bytes:
        """The mask of the next token: one bit per id, little-endian 32-bit words. End tokens are in it where the answer
        may end. Raises ConstraintError when the grammar outgrows its limits here."""

    def accept(self, token_id: int) -> bool:
        """Go on by one token. False, and no change, when the grammar does not allow it. Raises ConstraintError."""

    def rollback(self, num_tokens: int) -> None:
        """Take back the last accepted tokens."""


class CompiledGrammar(Protocol):
    """Shared between requests and threads."""

    @property
    def is_spent(self) -> bool:
        """Earlier answers have used it up: whoever comes next has it compiled anew."""

    def open(self) -> GrammarSession: ...


class GrammarCompiler(Protocol):
    """A backend together with a vocabulary. Called from several threads."""

    def compile(self, spec: StructuredSpec) -> CompiledGrammar:
        """May take long and cannot be interrupted. Raises ConstraintError."""


class StructuredBackend(Protocol):
    """One candidate. ``can_run`` imports nothing."""

    @property
    def name(self) -> str: ...

    @property
    def kinds(self) -> frozenset[StructuredKind]:
        """What it compiles; anything else is refused by name."""

    def can_run(self, need: StructuredNeed) -> Verdict: ...

    def prepare(self, vocabulary: Vocabulary) -> GrammarCompiler:
        """Import the library and build its tables for a vocabulary: hundreds of milliseconds for large ones."""
