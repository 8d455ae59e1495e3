"""Builds tokenizers from a bare vocabulary: byte-level BPE with merges, and sentencepiece-BPE with scores.

Used for GGUF metadata and for ``tokenizer.model`` files; does not know either format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import TYPE_CHECKING, Any

from penstock.errors import UnsupportedModelError
from penstock.frontend.text.pretokenizers import PreTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HubBackend
    from tokenizers.models import BPE

_SPACE = "▁"


class TokenType(IntEnum):
    """What a token is; sentencepiece's and GGUF's numbering."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens by id. ``types`` is empty when the source does not say; all are normal then."""

    tokens: Sequence[str]
    types: Sequence[int] = ()

    def ids(self) -> dict[str, int]:
        return {token: token_id for token_id, token in enumerate(self.tokens)}


def build_byte_level(vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], pre: PreTokenizer) -> HubBackend:
    """Byte-level BPE (GPT-2): every token is spelled in the byte alphabet, but for added ones."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    backend = Tokenizer(_make_bpe(vocabulary, merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), behavior="isolated") for split in pre.splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, vocabulary)
    return backend


def build_sentencepiece(
    vocabulary: Vocabulary, scores: Sequence[float], *, add_space_prefix: bool, unknown_token: str | None
) -> HubBackend:
    """Sentencepiece BPE with byte fallback: the pair whose joined token scores highest is merged first.

    With ``add_space_prefix`` a text gets a space in front at its very beginning, which decoding takes away again.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    merges = merges_from_scores(vocabulary.tokens, scores)
    model = _make_bpe(vocabulary, merges, unk_token=unknown_token, fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if add_space_prefix:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False)
        steps.append(decoders.Strip(content=" ", left=1))
    else:
        backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.decoder = decoders.Sequence(steps)
    _add_tokens(backend, vocabulary)
    return backend


def merges_from_scores(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Merge list that a scored vocabulary implies: every split of a token into two tokens, best score first.

    Of equal scores the longest left part comes first, then the longest right part, as in transformers.
    """
    if len(tokens) != len(scores):
        raise ValueError(f"{len(tokens)} tokens have {len(scores)} scores")
    known = frozenset(tokens)
    best_first = sorted(range(len(tokens)), key=scores.__getitem__, reverse=True)
    merges: list[tuple[str, str]] = []
    for _, rows in groupby(best_first, key=scores.__getitem__):
        equal = [
            (token[:cut], token[cut:])
            for token in map(tokens.__getitem__, rows)
            for cut in range(1, len(token))
            if token[:cut] in known and token[cut:] in known
        ]
        equal.sort(key=lambda merge: (len(merge[0]), len(merge[1])), reverse=True)
        merges += equal
    return merges


def _make_bpe(vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], **options: Any) -> BPE:
    from tokenizers.models import BPE

    try:
        return BPE(vocab=vocabulary.ids(), merges=list(merges), **options)
    except Exception as error:  # the library raises nothing narrower, e.g. for a merge of unknown tokens
        raise UnsupportedModelError(f"The tokenizer's vocabulary and merges do not fit together: {error}.") from error


def _add_tokens(backend: HubBackend, vocabulary: Vocabulary) -> None:
    """Control tokens become special, user-defined ones plain added tokens; both are matched whole in raw text."""
    from tokenizers import AddedToken

    special, plain = [], []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=False):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == TokenType.USER_DEFINED:
            plain.append(AddedToken(token, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)
