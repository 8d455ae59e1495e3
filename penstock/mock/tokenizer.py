"""Byte tokenizer: ids 0 to 255 are bytes, then specials. Every text round-trips, and every id's bytes are known."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUM_BYTES = 256
_PIECE_BYTES = 1 << 18
SPECIAL_TOKENS = ("<s>", "</s>", "<|pad|>", "<|im_start|>", "<|im_end|>")
_SPECIAL = re.compile(f"({'|'.join(map(re.escape, SPECIAL_TOKENS))})")


class ByteTokenizer:
    """Structurally the frontend's tokenizer. Special tokens in a text are recognised, as in hub tokenizers."""

    bos_token_id = _NUM_BYTES
    eos_token_id = _NUM_BYTES + 1
    pad_token_id = _NUM_BYTES + 2
    drops_first_space = False

    def __init__(self, *, add_bos: bool = False) -> None:
        self._add_bos = add_bos
        self._special_ids = {text: _NUM_BYTES + index for index, text in enumerate(SPECIAL_TOKENS)}

    @property
    def vocab_size(self) -> int:
        return _NUM_BYTES + len(SPECIAL_TOKENS)

    @property
    def special_token_ids(self) -> frozenset[int]:
        return frozenset(self._special_ids.values())

    @property
    def special_tokens(self) -> dict[str, int]:
        """Text of each special token -> its id."""
        return dict(self._special_ids)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """UTF-8 bytes as ids. Lone surrogates become the replacement character."""
        ids = [self.bos_token_id] if add_special_tokens and self._add_bos else []
        parts = _SPECIAL.split(text) if any(special in text for special in SPECIAL_TOKENS) else (text,)
        for part in parts:
            special = self._special_ids.get(part)
            if special is None:
                data = part.encode("utf-8", "replace")
                for start in range(0, len(data), _PIECE_BYTES):  # other threads come in between
                    ids.extend(data[start : start + _PIECE_BYTES])
            else:
                ids.append(special)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Bytes that are not UTF-8 become the replacement character; ids from ``vocab_size`` on add nothing."""
        data = b"".join(b"" if skip_special_tokens and i >= _NUM_BYTES else self.token_bytes(i) for i in ids)
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        if 0 <= token_id < _NUM_BYTES:
            return bytes((token_id,))
        if _NUM_BYTES <= token_id < self.vocab_size:
            return SPECIAL_TOKENS[token_id - _NUM_BYTES].encode()
        return b""  # a dummy model may have more tokens than there are bytes

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")
