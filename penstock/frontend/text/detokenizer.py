"""Incremental detokenization: token ids in, text out, never half a character.

Knows a tokenizer only through bytes per token; knows nothing of stop strings or requests.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from penstock.frontend.text.tokenizer import Tokenizer

_encode = msgspec.json.Encoder().encode
_make_decoder = codecs.getincrementaldecoder("utf-8")


class PieceTable:
    """Bytes and, where they are whole characters, text of every token, filled on first use; shared by all requests.

    ``texts[id]`` is None for an id not seen yet and for a token that is not UTF-8 by itself; ``escaped[id]`` is the
    same as UTF-8 inside a JSON string. Escaping knows single characters only, so pieces can be joined. ``skipped`` ids
    have no text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, visible: frozenset[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self.skipped = tokenizer.special_token_ids - visible if skip_special_tokens else frozenset()
        self.texts: list[str | None] = [None] * tokenizer.vocab_size
        self.escaped: list[bytes | None] = [None] * tokenizer.vocab_size
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """Bytes of a token; none for a skipped one and for an id outside the vocabulary (padded model heads)."""
        data = self._bytes.get(token_id)
        if data is None:
            if not 0 <= token_id < len(self.texts):
                return b""
            data = b"" if token_id in self.skipped else self._tokenizer.token_bytes(token_id)
            self._bytes[token_id] = data
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                return data
            self.texts[token_id] = text
            self.escaped[token_id] = escape(text)
        return data


def escape(text: str) -> bytes:
    """``text`` as it stands between the quotes of a JSON string, in UTF-8. It must have no lone surrogates."""
    return _encode(text)[1:-1]


@lru_cache(maxsize=16)
def piece_table(tokenizer: Tokenizer, skip_special_tokens: bool, visible: frozenset[int] = frozenset()) -> PieceTable:
    """The one table of this tokenizer and setting. ``visible`` are special tokens that are never skipped."""
    return PieceTable(tokenizer, skip_special_tokens, visible)


class Detokenizer:
    """Turns one request's tokens into text. All pushes and one flush, joined, equal ``tokenizer.decode`` of all ids,
    less a last character that stayed incomplete.

    ``at_start`` says that the text begins with these tokens, so that a sentencepiece leading space is dropped; a
    continuation of a prompt keeps it. Bytes that cannot become UTF-8 turn into U+FFFD as soon as that is certain.
    Constant work per token, whatever came before.
    """

    __slots__ = ("_at_start", "_decoder", "_escaped", "_pending", "_table", "_texts")

    def __init__(
        self,
        tokenizer: Tokenizer,
        skip_special_tokens: bool = True,
        *,
        at_start: bool = True,
        visible: frozenset[int] = frozenset(),
    ) -> None:
        self._table = piece_table(tokenizer, skip_special_tokens, visible)
        self._texts = self._table.texts
        self._escaped = self._table.escaped
        self._at_start = at_start and tokenizer.drops_first_space
        self._pending = False  # the decoder holds the beginning of a character
        self._decoder = _make_decoder("replace")

    def push(self, ids: Sequence[int]) -> str:
        """Text that became certain with these tokens; may be empty."""
        if not (self._pending or self._at_start):
            try:
                if len(ids) == 1:
                    text = self._texts[ids[0]]
                    if text is not None:
                        return text
                else:
                    return "".join([self._texts[token_id] for token_id in ids])  # type: ignore[misc]
            except (IndexError, TypeError):  # outside the vocabulary, or a token that needs its bytes
                pass
        return self._push_bytes(b"".join([self._table.bytes_of(token_id) for token_id in ids]))

    def push_escaped(self, ids: Sequence[int]) -> bytes:
        """``escape(push(ids))``, without a text in between where every token is whole characters."""
        if not (self._pending or self._at_start):
            try:
                if len(ids) == 1:
                    piece = self._escaped[ids[0]]
                    if piece is not None:
                        return piece
                else:
                    return b"".join([self._escaped[token_id] for token_id in ids])  # type: ignore[misc]
            except (IndexError, TypeError):  # as in push
                pass
        return escape(self._push_bytes(b"".join([self._table.bytes_of(token_id) for token_id in ids])))

    def flush(self) -> str:
        """The end. A character that stayed incomplete is dropped: a length limit cut it off, and U+FFFD would say that
        the model wrote rubbish."""
        self._pending = False
        text = self._decoder.decode(b"", True)
        # The beginning of a character decodes to one U+FFFD; what could never have become one, to one per byte.
        return text if len(text) > 1 else ""

    def _push_bytes(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        self._pending = bool(self._decoder.getstate()[0])
        if self._at_start and text:
            self._at_start = False
            return text[1:] if text[0] == " " else text
        return text
