"""xgrammar: pushdown automata over token tries, in C++. Optional: it imports torch and transformers, which takes
seconds, and is imported by ``prepare`` alone, in the engine's process."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.structured.contract import ConstraintError, StructuredNeed, Vocabulary
from penstock.structured.keywords import checked_schema, each_schema
from penstock.types.decision import YES, Verdict
from penstock.types.structured import StructuralTag, StructuredKind, StructuredSpec

if TYPE_CHECKING:
    import xgrammar

_NEEDED = ("xgrammar", "torch", "transformers")
MAX_WHITESPACE = 40

# Not the keywords of strings: the library then lets control characters stand in them bare, which is no JSON.
ENFORCED = frozenset(
    [
        "$ref",
        "type",
        "enum",
        "const",
        "anyOf",
        "properties",
        "additionalProperties",
        "required",
        "minProperties",
        "maxProperties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
    ]
)


# The library reads these only where ``type`` is one of the given ones, and alone.
_TYPED: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), frozenset({"number", "integer"})),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems"), frozenset({"array"})),
    **dict.fromkeys(
        ("properties", "additionalProperties", "required", "minProperties", "maxProperties"), frozenset({"object"})
    ),
}
_ALONE = ("$ref", "anyOf", "enum", "const")
_LOCAL_REF = re.compile(r"#(/[^~%\"]*)?")


class Xgrammar:
    name = "xgrammar"
    kinds = frozenset(StructuredKind)

    def can_run(self, need: StructuredNeed) -> Verdict:
        missing = tuple(
            f"needs the package {name}, which is not installed" for name in _NEEDED if name not in need.packages
        )
        return Verdict(missing) if missing else YES

    def prepare(self, vocabulary: Vocabulary) -> XgrammarCompiler:
        return XgrammarCompiler(vocabulary)


class XgrammarCompiler:
    def __init__(self, vocabulary: Vocabulary) -> None:
        import xgrammar

        self._library = xgrammar
        self._vocabulary = vocabulary
        # Special tokens have no bytes here, so that no string within an answer can be made of one.
        tokens = [b"" if i in vocabulary.special else data for i, data in enumerate(vocabulary.tokens)]
        info = xgrammar.TokenizerInfo(
            tokens,
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=vocabulary.num_ids,
            stop_token_ids=list(vocabulary.end_ids),
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, spec: StructuredSpec) -> XgrammarGrammar:
        try:
            if spec.after or spec.kind is StructuredKind.TAGS:
                tag = {"type": "structural_tag", "format": self._whole(spec)}
                compiled = self._compiler.compile_structural_tag(json.dumps(tag))
            else:
                compiled = self._plain(spec)
        except ConstraintError:
            raise
        except Exception as error:  # noqa: BLE001 - the library raises RuntimeError and types of its own
            raise ConstraintError(f"The {spec.kind.value} cannot be compiled: {_shortened(str(error))}.") from None
        return XgrammarGrammar(compiled, self._library, self._vocabulary)

    def _plain(self, spec: StructuredSpec) -> xgrammar.CompiledGrammar:
        compiler = self._compiler
        match spec.kind:
            case StructuredKind.JSON_SCHEMA | StructuredKind.JSON_OBJECT:
                schema = self._schema(spec.kind, spec.text)
                return compiler.compile_json_schema(
                    json.dumps(schema), any_whitespace=True, strict_mode=False, max_whitespace_cnt=MAX_WHITESPACE
                )
            case StructuredKind.REGEX:
                return compiler.compile_regex(spec.text)
            case StructuredKind.LARK:
                return compiler.compile_lark(spec.text)
            case StructuredKind.GBNF:
                return compiler.compile_grammar(spec.text)
            case _:
                return compiler.compile_grammar(_choice_rule(spec.choices))

    def _whole(self, spec: StructuredSpec) -> dict[str, Any]:
        if spec.kind is StructuredKind.TAGS:
            main = self._tags(spec)
            if spec.otherwise is not None:
                main = {"type": "or", "elements": [main, self._whole(spec.otherwise)]}
        elif spec.kind is StructuredKind.CHOICE:
            main = {"type": "grammar", "grammar": _choice_rule(spec.choices)}
        else:
            main = self._content(spec.kind, spec.text)
        if not spec.after:
            return main
        self._refuse_special(spec.after)
        self._refuse_special(spec.opens)
        before = {"type": "tag", "begin": spec.opens, "content": {"type": "any_text"}, "end": spec.after}
        breaks = {"type": "regex", "pattern": r"\n{0,2}"}
        whole = {"type": "sequence", "elements": [before, breaks, main]}
        return {"type": "or", "elements": [whole, main]} if spec.opens else whole

    def _tags(self, spec: StructuredSpec) -> dict[str, Any]:
        for text in (spec.opening, spec.separator, spec.closing):
            self._refuse_special(text)
        if spec.triggers and (spec.opening or spec.closing):
            raise ConstraintError("Groups of structural tags behind triggers cannot be enforced by xgrammar.")
        tags = [self._tag(tag) for tag in spec.tags]
        if spec.triggers:
            return {
                "type": "triggered_tags",
                "triggers": list(spec.triggers),
                "tags": tags,
                "at_least_one": spec.required,
                "stop_after_first": spec.single,
            }
        group = {
            "type": "tags_with_separator",
            "tags": tags,
            "separator": spec.separator,
            "at_least_one": True,
            "stop_after_first": spec.single,
        }
        parts = [_text(spec.opening), group, _text(spec.closing)]
        return {"type": "sequence", "elements": [part for part in parts if part is not None]}

    def _tag(self, tag: StructuralTag) -> dict[str, Any]:
        self._refuse_special(tag.begin)
        self._refuse_special(tag.end)
        return {"type": "tag", "begin": tag.begin, "content": self._content(tag.kind, tag.text), "end": tag.end}

    def _content(self, kind: StructuredKind, text: str) -> dict[str, Any]:
        match kind:
            case StructuredKind.JSON_SCHEMA | StructuredKind.JSON_OBJECT:
                return {"type": "json_schema", "json_schema": self._schema(kind, text)}
            case StructuredKind.REGEX:
                return {"type": "regex", "pattern": text}
            case StructuredKind.LARK:
                return {"type": "grammar", "grammar": text, "syntax": "lark"}
            case _:
                return {"type": "grammar", "grammar": text}

    def _schema(self, kind: StructuredKind, text: str) -> Any:
        if kind is StructuredKind.JSON_OBJECT:
            return {"type": "object"}
        schema = checked_schema(text, ENFORCED, Xgrammar.name)
        for at, one in each_schema(schema):
            _refuse_ignored(one, at)
        return schema

    def _refuse_special(self, text: str) -> None:
        for token_id in self._vocabulary.special:
            name = self._vocabulary.names.get(token_id, "")
            if name and name in text:
                raise ConstraintError(f"The special token {name} in structural tags cannot be enforced by xgrammar.")


class XgrammarGrammar:
    is_spent = False

    def __init__(self, compiled: xgrammar.CompiledGrammar, library: Any, vocabulary: Vocabulary) -> None:
        self._compiled = compiled
        self._library = library
        self._vocabulary = vocabulary

    def open(self) -> XgrammarSession:
        return XgrammarSession(self._library.GrammarMatcher(self._compiled), self._library, self._vocabulary)


class XgrammarSession:
    def __init__(self, matcher: xgrammar.GrammarMatcher, library: Any, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._ends = frozenset(vocabulary.end_ids)
        self._only_end = _mask_of(vocabulary.end_ids, vocabulary.mask_bytes)
        self._words = library.allocate_token_bitmask(1, vocabulary.num_ids)

    @property
    def is_terminated(self) -> bool:
        return self._matcher.is_terminated() or self.fill() == self._only_end

    def fill(self) -> bytes:
        if self._matcher.is_terminated():
            return self._only_end
        self._matcher.fill_next_token_bitmask(self._words)
        filled: bytes = self._words.numpy().tobytes()
        return filled

    def accept(self, token_id: int) -> bool:
        if self._matcher.is_terminated():
            return False
        return bool(self._matcher.accept_token(token_id))

    def rollback(self, num_tokens: int) -> None:
        if num_tokens:
            self._matcher.rollback(num_tokens)


def _refuse_ignored(schema: Mapping[str, Any], at: str) -> None:
    """The library leaves keywords out without a word where it does not expect them."""
    asserted = [keyword for keyword in schema if keyword in ENFORCED]
    for keyword in asserted:
        types = _TYPED.get(keyword)
        if types is not None and (not isinstance(schema.get("type"), str) or schema["type"] not in types):
            raise ConstraintError(
                f"The JSON schema keyword {keyword} (at {at}) is enforced by xgrammar only with type "
                f"{' or '.join(sorted(types))} beside it."
            )
    alone = next((keyword for keyword in _ALONE if keyword in schema), None)
    beside = [keyword for keyword in asserted if keyword not in (alone, "type")]
    if alone is not None and (beside or (alone in ("$ref", "anyOf") and "type" in schema)):
        raise ConstraintError(
            f"The JSON schema keyword {alone} (at {at}) is enforced by xgrammar only without other keywords beside it."
        )
    reference = schema.get("$ref", "#")
    if "$id" in schema or not (isinstance(reference, str) and _LOCAL_REF.fullmatch(reference)):
        raise ConstraintError(
            f"The JSON schema keywords $ref and $id (at {at}) are enforced by xgrammar only as #/a/path."
        )


def _mask_of(token_ids: tuple[int, ...], num_bytes: int) -> bytes:
    mask = bytearray(num_bytes)
    for token_id in token_ids:
        mask[token_id // 8] |= 1 << token_id % 8
    return bytes(mask)


def _choice_rule(choices: tuple[str, ...]) -> str:
    return "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _text(value: str) -> dict[str, Any] | None:
    return {"type": "const_string", "value": value} if value else None


def _shortened(found: str) -> str:
    found = found.strip().rstrip(".")
    return found if len(found) <= 400 else found[:397] + "..."
