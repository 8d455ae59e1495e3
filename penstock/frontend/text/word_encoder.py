"""WordEncoder: encoding with a memory, for byte-level BPE, next to the ``tokenizers`` library.

What lies between added tokens, such as a message of a conversation, is encoded by itself, and remembered: of the next
turn only what is new is looked at. Of that, the library would spend most of the time in its regular expression: four
microseconds a word. Python's own, with the tokens of every word that has been seen, takes a tenth.

Equality is what matters: where it is not certain that both give the same tokens, the library is asked. What makes it
certain: a part is cut by the tokenizer's own patterns, in which classes of characters are written out, and only parts
are cut whose characters have belonged to the same class since Unicode 3.2, so that no version of the tables can
disagree. The tokens of a word come from the library's model, which looks at nothing but the word.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from penstock.frontend.text.pieces import byte_alphabet

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HubBackend

MAX_WORDS = 1 << 16
"""Words that are remembered; then the memory starts afresh."""
MAX_WORD_CHARACTERS = 32
"""Longer words are not remembered."""
MAX_PARTS_CHARACTERS = 1 << 21
"""All parts that are remembered together; then the memory starts afresh."""
MAX_NEW_CHARACTERS = 16 << 10
"""With more that is not remembered a text is the library's, which lets other threads run meanwhile."""
MAX_ADDED_TOKENS = 2048

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel's own
_ASCII_SAMPLE = "The quick brown fox's 12,345 jumps;\n\n  it didn't stop...\t\tX_y = f(a[0]) # 3.14e-10\r\n"
_WIDE_SAMPLE = "WE'LL see (ÉTÉ, naïve, Straße) — Привет, мир! 你好，世界。 カタカナ 한국어 ½ ² «x»  \u00a0 \u2028end "


_Split = Callable[[str], list[str | Any]]


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One step that cuts: every match is a piece, and so is what lies between them, if it ``keeps_gaps``."""

    source: str
    keeps_gaps: bool = True

    def compiled(self, *, wide: bool) -> _Split:
        source = written_out(self.source, wide=wide)
        return re.compile(f"({source})").split if self.keeps_gaps else re.compile(source).findall


class WordEncoder:
    """``encode`` equals the library's, or is None. Used from several threads: whoever finds a memory that another one
    has emptied fills it again."""

    def __init__(self, backend: HubBackend) -> None:
        """Raises NotImplementedError with the reason when this tokenizer is of another kind."""
        reason = why_not(backend)
        if reason:
            raise NotImplementedError(reason)
        self._model = backend.model
        self._composed = bool(_normalizers(backend))
        self._patterns = _patterns(backend)
        self._ascii_cuts = _cuts(self._patterns, wide=False)
        self._wide_cuts: list[_Split] | None = None  # made when they are needed: that takes 20 ms
        added = {token.content: (token_id, token) for token_id, token in backend.get_added_tokens_decoder().items()}
        self._added = {content: token_id for content, (token_id, _) in added.items() if content}
        greedy = [text for text, (_, token) in added.items() if token.lstrip or token.rstrip or token.single_word]
        self._refused = _any_of(filter(None, greedy)).search if any(greedy) else None
        # The library looks for those that are not normalised in the whole text first, then for the others in the rest.
        passes = [
            [text for text, (_, token) in added.items() if text and token.normalized is way] for way in (False, True)
        ]
        self._passes = [_any_of(texts).split for texts in passes if texts]
        bare = backend.encode("a", add_special_tokens=False).ids
        framed = backend.encode("a").ids
        before = next(at for at in range(len(framed)) if framed[at : at + len(bare)] == bare)
        self._before, self._after = framed[:before], framed[before + len(bare) :]
        self._words: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, tuple[int, ...]] = {}
        self._parts_characters = 0
        self._backend = backend
        if not self._check(_ASCII_SAMPLE):
            raise NotImplementedError("the library cuts a sample text elsewhere")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int] | None:
        """Token ids, or None where it is better to ask the library for all of them."""
        if self._refused is not None and self._refused(text):
            return None
        ids = list(self._before) if add_special_tokens else []
        remembered = self._parts
        num_new = 0
        for part, token_id in self._cut_out(text):
            if token_id is not None:
                ids.append(token_id)
                continue
            found = remembered.get(part)
            if found is None:
                num_new += len(part)
                found = self._encode_part(part) if num_new <= MAX_NEW_CHARACTERS else None
                if found is None:
                    return None
            ids += found
        if add_special_tokens:
            ids += self._after
        return ids

    def _encode_part(self, part: str) -> tuple[int, ...] | None:
        cuts = self._ascii_cuts if part.isascii() else self._cuts_for(part)
        if cuts:
            known = self._words
            ids: list[int] = []
            for word in _words(part, cuts):
                found = known.get(word)
                ids += found if found is not None else self._learn(word)
        else:
            try:
                ids = self._backend.encode_batch_fast([part], add_special_tokens=False)[0].ids
            except TypeError:  # surrogates
                return None
        if self._parts_characters + len(part) > MAX_PARTS_CHARACTERS:
            self._parts.clear()
            self._parts_characters = 0
        self._parts_characters += len(part)
        self._parts[part] = found = tuple(ids)
        return found

    def _check(self, text: str) -> bool:
        return self.encode(text, add_special_tokens=True) == self._backend.encode(text).ids

    def _cuts_for(self, text: str) -> list[_Split]:
        """For a text that is not ASCII; empty when it has characters that versions of Unicode may differ about."""
        if not _settled().fullmatch(text) or (self._composed and not unicodedata.is_normalized("NFC", text)):
            return []
        if self._wide_cuts is None:
            self._wide_cuts = _cuts(self._patterns, wide=True)
            if not self._check(_WIDE_SAMPLE):
                self._wide_cuts = []
        return self._wide_cuts

    def _cut_out(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The added tokens in a text, and what lies between them."""
        parts: Iterable[tuple[str, int | None]] = ((text, None),)
        for split in self._passes:
            parts = _split_further(parts, split, self._added)
        return iter(parts)

    def _learn(self, word: str) -> tuple[int, ...]:
        spelled = word.encode().decode("latin-1").translate(_letters())
        ids = tuple([token.id for token in self._model.tokenize(spelled)])
        if len(word) <= MAX_WORD_CHARACTERS:
            if len(self._words) >= MAX_WORDS:
                self._words.clear()
            self._words[word] = ids
        return ids


def _cuts(patterns: Iterable[_Pattern], *, wide: bool) -> list[_Split]:
    return [pattern.compiled(wide=wide) for pattern in patterns]


def _words(part: str, cuts: Iterable[_Split]) -> Sequence[str]:
    words: Sequence[str] = (part,)
    for cut in cuts:
        pieces = cut(words[0]) if len(words) == 1 else [piece for word in words for piece in cut(word)]
        words = [piece for piece in pieces if piece]
    return words


def _split_further(
    parts: Iterable[tuple[str, int | None]], split: _Split, added: Mapping[str, int]
) -> Iterator[tuple[str, int | None]]:
    for part in parts:
        if part[1] is not None:
            yield part
            continue
        for number, piece in enumerate(split(part[0])):  # what does not match, what matches, ...
            if piece:
                yield piece, added[piece] if number % 2 else None


def why_not(backend: HubBackend) -> str:
    """Why this tokenizer's words are not known here; empty when they are."""
    if type(backend.model).__name__ != "BPE":
        return "its model is not BPE"
    if backend.model.dropout:
        return "it drops merges at random"
    if backend.encode_special_tokens:
        return "it cuts special tokens"
    if others := set(_normalizers(backend)) - {"NFC"}:
        return f"it normalises by {', '.join(sorted(others))}"
    if len(backend.get_added_tokens_decoder()) > MAX_ADDED_TOKENS:
        return f"it has more than {MAX_ADDED_TOKENS} added tokens"
    try:
        for pattern in _patterns(backend):
            pattern.compiled(wide=False)
    except (NotImplementedError, re.error) as error:
        return f"it cuts words in a way that is not known here: {error}"
    return ""


def _normalizers(backend: HubBackend) -> list[str]:
    described = _described(backend.normalizer)
    if described is None:
        return []
    return [step["type"] for step in (described["normalizers"] if described["type"] == "Sequence" else [described])]


def _described(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as data. The library pickles a part as its JSON."""
    if part is None:
        return None
    described = json.loads(part.__getstate__())
    assert isinstance(described, dict)
    return described


def _patterns(backend: HubBackend) -> list[_Pattern]:
    """What cuts a text into words, one after the other. Raises NotImplementedError for other ways."""
    described = _described(backend.pre_tokenizer)
    if described is None:
        raise NotImplementedError("it does not cut")
    steps = described["pretokenizers"] if described["type"] == "Sequence" else [described]
    *firsts, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        raise NotImplementedError(f"its last step is {last['type']}")
    return [*map(_pattern_of, firsts), *([_Pattern(_GPT2)] if last["use_regex"] else [])]


def _pattern_of(step: Mapping[str, Any]) -> _Pattern:
    if step["type"] == "Digits":
        return _Pattern(r"\p{N}" if step["individual_digits"] else r"\p{N}+")
    way = (step.get("behavior"), step.get("invert"))
    if step["type"] != "Split" or way not in (("Isolated", False), ("Removed", True)) or "Regex" not in step["pattern"]:
        raise NotImplementedError(f"one of its steps is {step['type']}")
    return _Pattern(str(step["pattern"]["Regex"]), keeps_gaps=way[0] == "Isolated")


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """The longest at the first place, in a group."""
    return re.compile("(" + "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) + ")")


@cache
def _letters() -> dict[int, str]:
    """How byte-level BPE writes each byte."""
    return {byte: letter for letter, byte in byte_alphabet().items()}


# -- characters ------------------------------------------------------------------------------------------------------

_Spans = list[tuple[int, int]]
_WHOLE = ((0x4E00, 0x9FA5), (0xAC00, 0xD7A3))  # ideographs and syllables: letters without case, all of them
_SINGLE = (range(0x3400), range(0xF900, 0xFB00), range(0xFB13, 0xFFFE))
_FOLDS_TO_ASCII = frozenset("\u017f\u212a\u0130\u0131")  # letters that a pattern without case takes for s, k and i
_ASCII_SPACES = r"\t-\r "
_SPACES = _ASCII_SPACES + r"\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_KNOWN_CLASSES = frozenset(("L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "N", "Nd", "Nl", "No", "P", "S"))
_CLASS = re.compile(r"\\p\{(\w{1,2})\}")
_ESCAPED = re.compile(r"\\([rntvfsS]|[^\w])")
_KNOWN_GROUP = re.compile(r"\((?=\?(?:[:!=]|i:))")


@cache
def _categories(wide: bool) -> dict[str, _Spans]:
    """By Unicode's general category, characters that have been of it since version 3.2: all of ASCII, or (``wide``)
    all of the first plane."""
    if not wide:
        return _spans_of(range(128))
    old, new = unicodedata.ucd_3_2_0.category, unicodedata.category
    codes = (code for part in _SINGLE for code in part)
    spans = _spans_of(code for code in codes if new(chr(code)) == old(chr(code)) and chr(code) not in _FOLDS_TO_ASCII)
    spans["Lo"] += _WHOLE
    return {name: found for name, found in spans.items() if name not in ("Cn", "Cs", "Co")}


def _spans_of(codes: Iterable[int]) -> dict[str, _Spans]:
    spans: dict[str, _Spans] = {}
    for code in codes:
        spans.setdefault(unicodedata.category(chr(code)), []).append((code, code))
    return {name: _joined(found) for name, found in spans.items()}


def _joined(spans: _Spans) -> _Spans:
    """Sorted, and neighbours as one."""
    joined: _Spans = []
    for first, last in sorted(spans):
        if joined and joined[-1][1] == first - 1:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


@cache
def _class_of(name: str, wide: bool) -> str:
    """Ranges of the characters of a category, or of all categories whose name begins so; empty without any."""
    found = [span for category, spans in _categories(wide).items() if category.startswith(name) for span in spans]
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in _joined(found))


@cache
def _settled() -> re.Pattern[str]:
    """Texts of characters whose category every version of Unicode since 3.2 has."""
    return re.compile(f"[{_class_of('', True)}]*")


def written_out(pattern: str, *, wide: bool) -> str:
    """A pattern of the library for Python, for texts of the characters of ``_categories``: their classes as ranges.
    Raises NotImplementedError for what may mean something else here."""
    blank = _SPACES if wide else _ASCII_SPACES
    out: list[str] = []
    at = 0
    in_class = False
    while at < len(pattern):
        if named := _CLASS.match(pattern, at):
            ranges = _class_of(named[1], wide)
            if named[1] not in _KNOWN_CLASSES:
                raise NotImplementedError(f"the class {named[1]} in the pattern {pattern!r}")
            out.append(ranges if in_class else f"[{ranges}]" if ranges else "(?!)")
            at = named.end()
        elif pattern[at] == "\\":
            escaped = _ESCAPED.match(pattern, at)
            if escaped is None or (escaped[1] == "S" and in_class):
                raise NotImplementedError(f"{pattern[at : at + 2]!r} in the pattern {pattern!r}")
            spaces = {"s": blank if in_class else f"[{blank}]", "S": f"[^{blank}]"}
            out.append(spaces.get(escaped[1], escaped[0]))
            at = escaped.end()
        else:
            nested = in_class and (pattern[at] == "[" or pattern.startswith("&&", at))
            if nested or (not in_class and pattern[at] == "(" and not _KNOWN_GROUP.match(pattern, at)):
                raise NotImplementedError(f"{pattern[at:]!r} in a pattern")
            in_class = pattern[at] == "[" or (in_class and pattern[at] != "]")
            out.append(pattern[at])
            at += 1
    return "".join(out)
