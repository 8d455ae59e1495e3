"""llguidance: Earley parser over lazily built lexer automata, in Rust. Enforces almost all of JSON Schema, and releases
Python's lock while it compiles and while it fills masks."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.structured.contract import ConstraintError, StructuredNeed, Vocabulary
from penstock.structured.keywords import checked_schema, each_schema, shown
from penstock.structured.lark import WHITESPACE, Content, SpecialTexts, write_grammar
from penstock.types.decision import YES, Verdict
from penstock.types.structured import StructuredKind, StructuredSpec

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

ENFORCED = frozenset(
    [
        "$ref",
        "type",
        "enum",
        "const",
        "allOf",
        "anyOf",
        "oneOf",
        "properties",
        "patternProperties",
        "additionalProperties",
        "required",
        "minProperties",
        "maxProperties",
        "items",
        "prefixItems",
        "additionalItems",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    ]
)

FORMATS = frozenset(
    ["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"],
)
"""What ``format`` may ask of strings."""

# What compiling and one mask may cost. Items of a mask take up to 15 us each in ambiguous grammars, so a mask at most
# about 0.1 s of one core; objects with 300 optional properties need 2,500 of them. What a mask does not outgrow, the
# token behind it does not either. A lexer state is 1 to 2 KB.
_LIMITS: Mapping[str, Any] = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 8_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}
_OPTIONS: Mapping[str, Any] = {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}

_LEXER_FAILED = "lexer error: "  # it has run out of states or of fuel, and fails from then on in every copy
RENEWAL_S = 0.25
"""A matcher that took longer to make is not made anew while a step waits for it."""


class Llguidance:
    name = "llguidance"
    kinds = frozenset(StructuredKind)

    def can_run(self, need: StructuredNeed) -> Verdict:
        if "llguidance" in need.packages:
            return YES
        return Verdict(("needs the package llguidance, which is not installed",))

    def prepare(self, vocabulary: Vocabulary) -> LlguidanceCompiler:
        return LlguidanceCompiler(vocabulary)


class LlguidanceCompiler:
    def __init__(self, vocabulary: Vocabulary) -> None:
        import llguidance

        self._library = llguidance
        self._vocabulary = vocabulary
        self._texts = SpecialTexts(vocabulary)
        self._tokenizer: LLTokenizer = llguidance.LLTokenizer(
            _Tokens(vocabulary),  # type: ignore[arg-type]
            n_vocab=vocabulary.num_ids,
            eos_token=list(vocabulary.end_ids),
            slices=llguidance.LLTokenizer.json_slices(),
        )
        self._limits: LLParserLimits = llguidance.LLParserLimits(**_LIMITS)

    def compile(self, spec: StructuredSpec) -> LlguidanceGrammar:
        text = write_grammar(spec, self._texts, self._content)
        make = partial(self._library.LLMatcher, self._tokenizer, text, log_level=0, limits=self._limits)
        began = time.thread_time()
        matcher = make()
        make_s = time.thread_time() - began
        if matcher.is_error():
            raise ConstraintError(_sentence(spec, matcher.get_error()))
        grammar = LlguidanceGrammar(matcher, make if make_s <= RENEWAL_S else None, self._vocabulary)
        grammar.open().fill()
        return grammar

    def _content(self, kind: StructuredKind, text: str) -> Content:
        match kind:
            case StructuredKind.JSON_OBJECT:
                return Content(inline=_inline_schema({"type": "object"}))
            case StructuredKind.JSON_SCHEMA:
                schema = checked_schema(text, ENFORCED, Llguidance.name)
                for at, one in each_schema(schema):
                    _check_format(one, at)
                return Content(inline=_inline_schema(schema))
            case StructuredKind.REGEX:
                return Content(inline=f"/{self._library.regex_to_lark(text, 'd')}/")
            case StructuredKind.GBNF:
                return Content(lark=self._lark_of_gbnf(text))
            case _:
                return Content(lark=text)

    def _lark_of_gbnf(self, text: str) -> str:
        from llguidance.gbnf_to_lark import gbnf_to_lark

        try:
            return str(gbnf_to_lark(text))
        except RecursionError:
            raise ConstraintError("The grammar is nested too deeply.") from None
        except Exception as error:  # noqa: BLE001 - the converter raises bare ones
            raise ConstraintError(f"The grammar is not GBNF as llama.cpp has it: {_shortened(str(error))}.") from None


class LlguidanceGrammar:
    """Copies of a matcher share what its lexer has learned, over all answers, and in time its states run out. Then
    ``make`` makes a matcher anew; None, because that takes too long: the grammar is spent."""

    def __init__(self, matcher: LLMatcher, make: Callable[[], LLMatcher] | None, vocabulary: Vocabulary) -> None:
        self._make = make
        self._vocabulary = vocabulary
        self._lock = threading.Lock()  # of renewals
        self._current = (0, matcher)
        self.is_spent = False

    def open(self) -> LlguidanceSession:
        generation, matcher = self._current
        return LlguidanceSession(self, generation, matcher.deep_copy(), self._vocabulary)

    def renewed(self, spent: int) -> tuple[int, LLMatcher] | None:
        """A matcher that is not of the generation ``spent``, for all to come, and its generation."""
        if self._make is None:
            self.is_spent = True
            return None
        with self._lock:
            generation, matcher = self._current
            if generation == spent:
                generation, matcher = self._current = spent + 1, self._make()
            return generation, matcher.deep_copy()

    def made_anew(self) -> LLMatcher | None:
        """A matcher that shares with none."""
        return None if self._make is None else self._make()


class LlguidanceSession:
    """End tokens are kept from the matcher, which takes none once its grammar is finished."""

    def __init__(self, grammar: LlguidanceGrammar, generation: int, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._grammar = grammar
        self._generation: int | None = generation  # None: its matcher shares with none
        self._was_renewed = False
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._tokens: list[int] = []  # what the matcher has accepted
        self._ended = False

    @property
    def is_terminated(self) -> bool:
        return self._ended or self._matcher.is_stopped()

    def fill(self) -> bytes:
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self._renew()
            return self.fill()
        width = self._vocabulary.mask_bytes
        return mask if len(mask) == width else mask[:width].ljust(width, b"\0")

    def accept(self, token_id: int) -> bool:
        is_end = token_id in self._vocabulary.end_ids
        if is_end:
            accepted = not self._ended and self._matcher.is_accepting()
        elif self._ended or not 0 <= token_id < len(self._vocabulary.tokens) or self._matcher.is_stopped():
            accepted = False
        else:
            accepted = self._matcher.try_consume_tokens([token_id]) == 1
        if self._matcher.is_error():
            self._renew()
            return self.accept(token_id)
        if is_end:
            self._ended = self._ended or accepted
        elif accepted:
            self._tokens.append(token_id)
        return accepted

    def rollback(self, num_tokens: int) -> None:
        if self._ended and num_tokens:
            self._ended = False
            num_tokens -= 1
        if num_tokens:
            del self._tokens[-num_tokens:]
            self._matcher.rollback(num_tokens)
            if self._matcher.is_error():
                self._renew()

    def _renew(self) -> None:
        """Go on where the lexer that is shared has failed, with one that others have not used, or not as long; at last
        with one of its own, where nothing but this very answer can fail. Raises ConstraintError."""
        found = self._matcher.get_error()
        while found.startswith(_LEXER_FAILED) and self._generation is not None:
            fresh = self._fresh()
            if fresh is None:
                raise ConstraintError("The form has to be compiled anew for this answer. Send the request again.")
            self._matcher = fresh
            count = fresh.try_consume_tokens(self._tokens) if self._tokens else 0
            if not fresh.is_error():
                if count < len(self._tokens):
                    raise ConstraintError("The answer has left the form that was asked for.")
                return
            found = fresh.get_error()
        raise ConstraintError(_step_sentence(found))

    def _fresh(self) -> LLMatcher | None:
        assert self._generation is not None
        renewed = None if self._was_renewed else self._grammar.renewed(self._generation)
        if renewed is not None:
            self._was_renewed = True
            self._generation, matcher = renewed
            return matcher
        self._generation = None
        return self._grammar.made_anew()


class _Tokens:
    """The vocabulary as the library's tokenizer protocol wants it. Grammars are over bytes, and nothing is forced: what
    tokenizes here, by the longest token that fits, is asked only by exotic options of Lark grammars."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.end_ids[0]
        self.special_token_ids = sorted(vocabulary.special)
        self.tokens = [
            vocabulary.names.get(token_id, "").encode() if token_id in vocabulary.special else data
            for token_id, data in enumerate(vocabulary.tokens)
        ]
        self._plain = {data: i for i, data in enumerate(vocabulary.tokens) if data and i not in vocabulary.special}
        self._longest = max(map(len, self._plain), default=0)

    def __call__(self, text: str | bytes) -> list[int]:
        data = text.encode("utf-8", "replace") if isinstance(text, str) else text
        ids: list[int] = []
        at = 0
        while at < len(data):
            ends = range(min(len(data), at + self._longest), at, -1)
            end = next((end for end in ends if data[at:end] in self._plain), 0)
            if end:
                ids.append(self._plain[data[at:end]])
            at = end or at + 1
        return ids


def _inline_schema(schema: Any) -> str:
    """``%json`` with our options. They stand in an object of their own, so that no schema can bring others."""
    if schema is True:
        schema = {}
    if schema is False:
        raise ConstraintError("The JSON schema is false: no answer fits it.")
    return "%json " + json.dumps({"x-guidance": dict(_OPTIONS), **schema}, ensure_ascii=False)


def _check_format(schema: Mapping[str, Any], at: str) -> None:
    """Formats say something of strings alone. Raises ConstraintError."""
    if "format" not in schema or schema.get("type") in ("object", "array", "number", "integer", "boolean", "null"):
        return
    wanted = schema["format"]
    if not isinstance(wanted, str) or wanted not in FORMATS:
        raise ConstraintError(
            f"The JSON schema keyword format (at {at}) cannot be enforced by llguidance with the value "
            f"{shown(wanted)}. Leave it out and check it yourself, or write a pattern."
        )


_UNIMPLEMENTED = re.compile(r"Unimplemented keys: \[(.*?)\]")
_PLACE = re.compile(r"at \d+\(\d+\): |failed to compile JSON schema: ")
_COUNTED_PROPERTIES = "min/maxProperties only supported when"
_ONE_OF = "oneOf constraints are not supported"


def _sentence(spec: StructuredSpec, found: str) -> str:
    """The library's error as a sentence of ours."""
    unimplemented = _UNIMPLEMENTED.search(found)
    if unimplemented:
        names = unimplemented[1].replace('"', "")
        return f"The JSON schema keyword {names} cannot be enforced by llguidance. Leave it out."
    if _ONE_OF in found:
        return (
            "The JSON schema keyword oneOf cannot be enforced here, because two of its schemas may accept the same "
            "value. Use anyOf, or make them exclude each other."
        )
    if _COUNTED_PROPERTIES in found:
        return (
            "The JSON schema keywords minProperties and maxProperties can be enforced by llguidance only where all "
            "that properties names is required."
        )
    what = {
        StructuredKind.JSON_SCHEMA: "JSON schema",
        StructuredKind.REGEX: "regular expression",
        StructuredKind.TAGS: "structural tags",
    }.get(spec.kind, spec.kind.value)
    if spec.kind is not StructuredKind.LARK:  # others have not written the lines that the library shows
        found = _PLACE.sub("", found.partition("\n   1 | ")[0])
    return f"The {what} cannot be compiled: {_shortened(found)}."


def _step_sentence(found: str) -> str:
    if found.startswith("NoExtension"):
        return "No answer fits the form that was asked for."
    return f"The answer cannot go on in the form that was asked for: {_shortened(found)}."


def _shortened(found: str) -> str:
    """Without the library's state dumps and back traces, and bounded."""
    for mark in ("<backtrace>", "<state>", "<non-verbose/>"):
        found = found.partition(mark)[0]
    found = found.strip().rstrip(".")
    return found if len(found) <= 400 else found[:397] + "..."
