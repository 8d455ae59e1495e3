"""Tokenizer: what every other part may ask of one, and the implementation over the ``tokenizers`` library.

Does not know where a tokenizer comes from (``load``) or that text is streamed (``detokenizer``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from penstock.errors import UnsupportedModelError
from penstock.frontend.text.pieces import PieceDecoder, piece_decoder
from penstock.frontend.text.word_encoder import WordEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HubBackend

_LOG = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """Text to token ids and back. Implementations may be called from several threads.

    ``decode(ids)`` equals the replacing UTF-8 decoding of the joined ``token_bytes``, without the special tokens when
    they are skipped and without one leading space when ``drops_first_space``. Streaming relies on exactly that.
    """

    def __hash__(self) -> int:
        """By identity: tables per tokenizer are cached."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Control tokens: left out of text when special tokens are skipped."""

    @property
    def drops_first_space(self) -> bool:
        """True when encoding puts a space before the text that decoding a whole text takes away (sentencepiece)."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``. Texts of special tokens inside it become those tokens; any str is accepted."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that this token adds to a text. Ids from ``vocab_size`` on have none."""

    def token_text(self, token_id: int) -> str:
        """The token's bytes as text, U+FFFD where they are not UTF-8 by themselves."""


class HubTokenizer:
    """A ``tokenizers.Tokenizer``, with bytes per token derived from its decoder.

    ``clean_up_tokenization_spaces`` is ignored on purpose: it would change code that the model wrote.
    Byte-fallback runs that are not UTF-8 decode with one U+FFFD per broken sequence, as byte-level tokenizers do; the
    library's decoder would turn the whole run, valid characters included, into U+FFFD, which no stream can follow.
    """

    def __init__(
        self,
        backend: HubBackend,
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._bos_token_id = bos_token_id
        self._eos_token_id = eos_token_id
        added = backend.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._pieces: PieceDecoder = piece_decoder(_decoder_of(backend))
        self._words = _word_encoder(backend)

    @cached_property
    def vocab_size(self) -> int:
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def bos_token_id(self) -> int | None:
        return self._bos_token_id

    @property
    def eos_token_id(self) -> int | None:
        return self._eos_token_id

    @property
    def special_token_ids(self) -> frozenset[int]:
        return self._special

    @property
    def drops_first_space(self) -> bool:
        return self._pieces.drops_first_space

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        known = self.encode_known(text, add_special_tokens=add_special_tokens)
        return known if known is not None else self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_known(self, text: str, *, add_special_tokens: bool) -> list[int] | None:
        """``encode`` of a text whose words are known: a tenth of a microsecond a character, on this thread. None: it
        takes the library, which is slower and can do several at once."""
        return self._words.encode(text, add_special_tokens=add_special_tokens) if self._words is not None else None

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """``encode`` of several texts by the library, side by side on the machine's cores."""
        # This call leaves out offsets into the text, which nobody asks for: a quarter of the time.
        encode = self._backend.encode_batch_fast
        try:
            encodings = encode(texts, add_special_tokens=add_special_tokens)
        except TypeError:  # surrogates, which JSON can carry: pairs become their character, lone ones U+FFFD
            whole = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
            encodings = encode(whole, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        special = self._special if skip_special_tokens else frozenset()
        data = b"".join([self.token_bytes(token_id) for token_id in ids if token_id not in special])
        text = data.decode("utf-8", "replace")
        return text[1:] if self.drops_first_space and text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> bytes:
        piece = self._backend.id_to_token(token_id) if token_id >= 0 else None
        return b"" if piece is None else self._pieces.bytes_of(piece)

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")


def _word_encoder(backend: HubBackend) -> WordEncoder | None:
    try:
        return WordEncoder(backend)
    except NotImplementedError as reason:
        _LOG.debug("words of this tokenizer are not remembered: %s", reason)
        return None


def set_sequence_ends(backend: HubBackend, *, bos: str | None, eos: str | None) -> None:
    """Make ``encode`` put these tokens around a text; None leaves that end bare."""
    from tokenizers import processors

    ends = [token for token in (bos, eos) if token is not None]
    single = [*([bos] if bos is not None else []), "$A", *([eos] if eos is not None else [])]
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        pair=[*single, *(part if part != "$A" else "$B" for part in single)],
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(ends)],
    )


def _decoder_of(backend: HubBackend) -> dict[str, object]:
    """The decoder's description. The library pickles a decoder as its JSON."""
    decoder = backend.decoder
    if decoder is None:
        raise UnsupportedModelError("The tokenizer has no decoder, so its tokens cannot be turned back into text.")
    state = decoder.__getstate__()
    described = json.loads(state)
    assert isinstance(described, dict)
    return described
