"""Reads sentencepiece ``tokenizer.model`` files of the BPE kind (Llama 2, Mistral, Gemma) without sentencepiece.

Knows the few protobuf fields that matter: pieces with score and type, the model kind, the dummy prefix.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import ModelSourceError, UnsupportedModelError
from penstock.frontend.text.vocabularies import TokenType, Vocabulary, build_sentencepiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HubBackend

_BPE = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class SentencepieceModel:
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    kind: int  # 1 unigram, 2 BPE, 3 word, 4 char
    add_dummy_prefix: bool
    removes_extra_spaces: bool
    has_charsmap: bool


def build_from_model_file(path: Path) -> HubBackend:
    """Raises ModelSourceError for a damaged file, UnsupportedModelError for a kind that would need sentencepiece."""
    try:
        model = parse_model(path.read_bytes())
    except (OSError, IndexError, struct.error, ValueError, TypeError) as error:
        raise ModelSourceError(f"{path} is not a sentencepiece model: {error}.") from error
    if model.kind != _BPE or model.removes_extra_spaces or model.has_charsmap:
        raise UnsupportedModelError(
            f"{path} can only be read when it is a BPE model that does not rewrite text; this one is of kind "
            f"{model.kind} (1 unigram, 2 BPE), removes extra spaces: {model.removes_extra_spaces}, has a character "
            f"map: {model.has_charsmap}.\n\n"
            "Convert it to a tokenizer.json (transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)) "
            "and name that directory with --tokenizer."
        )
    unknown = next((row for row, kind in enumerate(model.types) if kind == TokenType.UNKNOWN), None)
    return build_sentencepiece(
        Vocabulary(tokens=model.tokens, types=model.types),
        model.scores,
        add_space_prefix=model.add_dummy_prefix,
        unknown_token=None if unknown is None else model.tokens[unknown],
    )


def parse_model(data: bytes) -> SentencepieceModel:
    """Read a ModelProto: pieces are field 1, the trainer's spec field 2, the normalizer's spec field 3."""
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    kind, dummy_prefix, removes_spaces, charsmap = 1, True, True, b""
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(_as_bytes(value)))
            tokens.append(_as_bytes(piece.get(1, b"")).decode("utf-8"))
            (score,) = struct.unpack("<f", _as_bytes(piece.get(2, bytes(4))))
            scores.append(score)
            types.append(_as_int(piece.get(3, 1)))
        elif number == 2:
            kind = _as_int(dict(_fields(_as_bytes(value))).get(3, 1))
        elif number == 3:
            spec = dict(_fields(_as_bytes(value)))
            charsmap = _as_bytes(spec.get(2, b""))
            dummy_prefix, removes_spaces = bool(spec.get(3, 1)), bool(spec.get(4, 1))
    if not tokens:
        raise ValueError("it has no pieces")
    return SentencepieceModel(
        tuple(tokens), tuple(scores), tuple(types), kind, dummy_prefix, removes_spaces, bool(charsmap)
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of one protobuf message in order; fixed-size numbers as their bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            length, position = _varint(data, position)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise TypeError(f"unknown wire type {wire}")
        if position + length > len(data):
            raise IndexError("it ends too early")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError("a number stands where bytes are expected")
    return value


def _as_int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise TypeError("bytes stand where a number is expected")
    return value
