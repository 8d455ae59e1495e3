"""Prompt expansion: every marker of a medium in a prompt becomes the run of placeholder tokens that the model expects.

A pure function over token ids, in one pass. What a medium is, how it is resized and how many tokens it takes is the
business of each family's file beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.errors import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaItem:
    """One medium of a prompt.

    ``marker`` are the token ids that stand for it in the rendered prompt. ``replacement`` is what the model sees
    instead, and ``takes_embedding`` says for each of its tokens whether the encoder's output replaces the embedding
    (True) or the token is one of its own, such as a row separator (False). ``kind`` is for messages: "image".
    """

    kind: str
    marker: tuple[int, ...]
    replacement: tuple[int, ...]
    takes_embedding: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not self.marker:
            raise ValueError("a marker must have at least one token")
        if len(self.replacement) != len(self.takes_embedding):
            raise ValueError(
                f"a replacement of {len(self.replacement)} tokens has a mask of {len(self.takes_embedding)} entries"
            )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a medium stands in the expanded prompt: tokens ``offset`` to ``offset + length``, and the positions, from
    the start of the prompt, whose embeddings are the encoder's, in order."""

    offset: int
    length: int
    embed_positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpandedPrompt:
    """``mask`` has one byte per token: 1 where an embedding of the encoder stands, else 0."""

    token_ids: tuple[int, ...]
    placements: tuple[Placement, ...]  # one per item, in order
    mask: bytes


def expand_prompt(token_ids: Sequence[int], items: Sequence[MediaItem], *, param: str = "messages") -> ExpandedPrompt:
    """Put the replacement of each item in the place of its marker, in the order of the prompt.

    ``items`` stand in the order in which the prompt names them. Time is linear in the length of the result: the prompt
    is read once, and what was put in is not read again, so that a replacement may contain its own marker.
    Raises InvalidRequestError, naming ``param``, when markers and items do not match one to one, and for an item that
    takes no token.
    """
    for item in items:
        if not any(item.takes_embedding):
            raise InvalidRequestError(f"An {item.kind} takes no token of this model: it is too small.", param=param)
    markers = _by_first_token(items)
    if not markers:
        return ExpandedPrompt(tuple(token_ids), (), bytes(len(token_ids)))
    expanded: list[int] = []
    mask = bytearray()
    placements: list[Placement] = []
    copied = 0  # tokens of the prompt that are in ``expanded`` or were replaced
    for position, token_id in enumerate(token_ids):
        if token_id not in markers or position < copied:
            continue
        marker = _marker_at(token_ids, position, markers[token_id])
        if marker is None:
            continue
        item = _next_item(items, len(placements), marker, param)
        expanded += token_ids[copied:position]
        mask += bytes(position - copied)
        offset = len(expanded)
        expanded += item.replacement
        mask += bytes(item.takes_embedding)
        embeds = tuple(offset + place for place, takes in enumerate(item.takes_embedding) if takes)
        placements.append(Placement(offset, len(item.replacement), embeds))
        copied = position + len(marker)
    if len(placements) < len(items):
        raise _mismatch(len(placements), len(items), items[len(placements)].kind, param)
    expanded += token_ids[copied:]
    mask += bytes(len(token_ids) - copied)
    return ExpandedPrompt(tuple(expanded), tuple(placements), bytes(mask))


def _by_first_token(items: Sequence[MediaItem]) -> dict[int, list[tuple[int, ...]]]:
    """The distinct markers by their first token, the longest ones first: one may begin with another."""
    found: dict[int, list[tuple[int, ...]]] = {}
    for marker in sorted({item.marker for item in items}, key=len, reverse=True):
        found.setdefault(marker[0], []).append(marker)
    return found


def _marker_at(token_ids: Sequence[int], position: int, markers: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    for marker in markers:
        if len(marker) == 1 or tuple(token_ids[position : position + len(marker)]) == marker:
            return marker
    return None


def _next_item(items: Sequence[MediaItem], number: int, marker: tuple[int, ...], param: str) -> MediaItem:
    if number == len(items):
        raise InvalidRequestError(
            f"The prompt has more places for media than the {len(items)} that came with it. A text must not contain "
            "the model's own markers.",
            param=param,
        )
    item = items[number]
    if item.marker != marker:
        raise InvalidRequestError(
            f"Medium {number + 1} of the prompt is an {item.kind}, but its place is that of another kind: media must "
            "come in the order in which the prompt names them.",
            param=param,
        )
    return item


def _mismatch(places: int, given: int, kind: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The prompt has {places} places for media, but {given} came with it; the first without a place is an {kind}.",
        param=param,
    )
