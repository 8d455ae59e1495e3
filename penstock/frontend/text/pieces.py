"""Pieces to bytes: reads a tokenizer's decoder as data, so that every token has bytes of its own.

Knows the decoder vocabulary of the ``tokenizers`` library as JSON; does not import it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from penstock.errors import UnsupportedModelError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class PieceDecoder:
    """How the stored text of a token becomes bytes, independent of its neighbours."""

    bytes_of: Callable[[str], bytes]
    drops_first_space: bool


@cache
def byte_alphabet() -> dict[str, int]:
    """Character to byte of byte-level BPE (GPT-2): printable Latin-1 stands for itself, the rest from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(value): value for value in plain}
    others = (value for value in range(256) if value not in set(plain))
    alphabet.update({chr(0x100 + position): value for position, value in enumerate(others)})
    return alphabet


def byte_level_bytes(piece: str) -> bytes:
    """Bytes of a byte-level piece. One character outside the alphabet makes the whole piece plain text."""
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:
        return piece.encode("utf-8")


def piece_decoder(description: Mapping[str, Any]) -> PieceDecoder:
    """Read a decoder's JSON. Raises UnsupportedModelError, naming the step, when a token's text needs others."""
    steps = _flatten(description)
    maps: list[Callable[[str], str]] = []
    last: Callable[[str], bytes] = _plain_bytes
    drops_first_space = False
    fused = False
    for step in steps:
        kind = step["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "ByteLevel" and not fused:
            last = byte_level_bytes
        elif kind == "ByteFallback" and not fused:
            last = _byte_fallback_bytes
        elif kind == "Replace" and not fused and "String" in step["pattern"]:
            maps.append(_replacing(step["pattern"]["String"], step["content"]))
        elif kind == "Metaspace" and not fused:
            maps.append(_replacing(step.get("replacement", "▁"), " "))
            drops_first_space = _prepends(step)
        elif kind == "Strip" and fused and (step["content"], step["start"], step["stop"]) == (" ", 1, 0):
            drops_first_space = True
        elif not (kind == "Strip" and step["start"] == step["stop"] == 0):
            raise UnsupportedModelError(f"The tokenizer's decoder uses {kind} in a way that cannot be streamed.")
    return PieceDecoder(_chain(tuple(maps), last), drops_first_space)


def _flatten(description: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if description["type"] == "Sequence":
        return [step for part in description["decoders"] for step in _flatten(part)]
    return [description]


def _prepends(metaspace: Mapping[str, Any]) -> bool:
    scheme = metaspace.get("prepend_scheme")
    return scheme != "never" if scheme is not None else bool(metaspace.get("add_prefix_space", True))


def _replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda piece: piece.replace(old, new)


def _chain(maps: tuple[Callable[[str], str], ...], last: Callable[[str], bytes]) -> Callable[[str], bytes]:
    def bytes_of(piece: str) -> bytes:
        for apply in maps:
            piece = apply(piece)
        return last(piece)

    return bytes_of


def _plain_bytes(piece: str) -> bytes:
    return piece.encode("utf-8")


def _byte_fallback_bytes(piece: str) -> bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece.encode("utf-8")
