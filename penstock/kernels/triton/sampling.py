"""Sampling in Triton without sorting the vocabulary. Knows no request.

Two launches. The first cuts every row into pieces and writes each piece's largest logit and the sum of its weights,
with the whole card on every row. The second has one program for each row. Without cuts it finds the piece and then the
token where the cumulated distribution passes the uniform number. A cut is a threshold on the logits, ties included:
the pieces give a bound that it is not below, and it is bisected over the tokens of the pieces that reach the bound.

A row draws with one uniform number that its seed and its position give, where the largest of the logits with Gumbel
noise would need one for every token; and it draws what the same number draws on a CPU.

Thresholds are integers of the order of the logits as they came, since a temperature keeps the order: what ties is what
ties in the model's result. Sums of single tokens are float32, over a piece at most; everything above is float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import AotCase
from penstock.kernels.triton.layout import check_rows, check_vectors
from penstock.kernels.triton.order import INFINITE, LEAST, NEVER, key_of, value_of

PIECE = 64  # tokens
TILE = 64  # pieces that are looked at together
MEASURES = 3  # of a piece: its largest logit, the sum of its weights, whether a logit is not finite


@triton.jit
def _piece_kernel(
    logits, temperature, pieces, vocab, row_stride, NUM_PIECES: tl.constexpr, PIECE: tl.constexpr, TILE: tl.constexpr
):
    """Weights are relative to the largest of their piece, so that every piece can be weighed by itself."""
    tiles = (NUM_PIECES + TILE - 1) // TILE
    row = (tl.program_id(0) // tiles).to(tl.int64)
    piece = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    token = piece[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
    there = token < vocab
    values = tl.load(logits + row * row_stride + token, mask=there, other=float("-inf")).to(tl.float32)
    largest = value_of(tl.max(key_of(values), axis=1))
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    sums = tl.sum(tl.exp((values - shift[:, None]) / tl.load(temperature + row)), axis=1)
    finite = (tl.abs(values) < float("inf")) | (token >= vocab)
    broken = tl.max(tl.where(finite, 0, 1), axis=1)
    at = pieces + row * (3 * NUM_PIECES) + piece
    written = piece < NUM_PIECES
    tl.store(at, largest, mask=written)
    tl.store(at + NUM_PIECES, sums, mask=written)
    tl.store(at + 2 * NUM_PIECES, broken.to(tl.float32), mask=written)


@triton.jit
def _first_beyond(masses, before, target):
    """The first place of masses float64 [n] whose cumulated mass, with ``before``, exceeds the target: never one
    without mass, behind which rounding may have put the target. And what lies before it."""
    places: tl.constexpr = masses.shape[0]
    index = tl.arange(0, places)
    some = masses > 0.0
    beyond = (before + tl.cumsum(masses, axis=0) > target) & some
    first = tl.min(tl.where(beyond, index, places), axis=0)
    last = tl.max(tl.where(some, index, 0), axis=0)
    found = tl.minimum(first, last)
    return found, before + tl.sum(tl.where(index < found, masses, 0.0), axis=0)


@triton.jit
def _token_in_piece(source, piece, key, best, heat, before, target, vocab, PIECE: tl.constexpr):
    """The token of a piece where the cumulated weight exceeds the target, among those not below the key."""
    token = piece * PIECE + tl.arange(0, PIECE)
    values = tl.load(source + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    weights = tl.where(key_of(values) >= key, tl.exp((values - best) / heat), 0.0)
    place, _ = _first_beyond(weights.to(tl.float64), before, target)
    return (piece * PIECE + place).to(tl.int64)


@triton.jit
def _tile(source, chosen, start, count, best, heat, vocab, PIECE: tl.constexpr, TILE: tl.constexpr):
    """Keys and weights [TILE, PIECE] of the tokens of the chosen pieces from ``start`` on. What is behind the last has
    the key of minus infinity."""
    which = start + tl.arange(0, TILE)
    piece = tl.load(chosen + which, mask=which < count, other=0)
    token = piece[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
    there = (which < count)[:, None] & (token < vocab)
    values = tl.load(source + token, mask=there, other=float("-inf")).to(tl.float32)
    return key_of(values), tl.exp((values - best) / heat)


@triton.jit
def _masses(keys, weights, key):
    """What the tokens of each piece of a tile that are not below the key weigh, float64, and how many they are in
    all."""
    kept = keys >= key
    masses = tl.sum(tl.where(kept, weights, 0.0), axis=1).to(tl.float64)
    return masses, tl.sum(tl.sum(kept.to(tl.int32), axis=1), axis=0)


@triton.jit
def _measure(source, chosen, count, keys, weights, key, best, heat, vocab, PIECE: tl.constexpr, TILE: tl.constexpr):
    """How many tokens of the chosen pieces are not below the key, and what they weigh. The first tile is at hand as
    ``keys`` and ``weights``: mostly there is no other."""
    masses, tokens = _masses(keys, weights, key)
    weight = tl.sum(masses, axis=0)
    for start in range(TILE, count, TILE):
        more_keys, more_weights = _tile(source, chosen, start, count, best, heat, vocab, PIECE, TILE)
        masses, kept = _masses(more_keys, more_weights, key)
        weight += tl.sum(masses, axis=0)
        tokens += kept
    return tokens, weight


@triton.jit
def _middle(low, high):
    """Between two int32 keys, whose distance may be no int32."""
    return (low.to(tl.int64) + (high.to(tl.int64) - low.to(tl.int64)) // 2).to(tl.int32)


@triton.jit
def _far(low, high, distance):
    return high.to(tl.int64) - low.to(tl.int64) > distance


@triton.jit
def _min_p_key(best, best_key, heat, least):
    """The least key whose token has ``least`` times the largest probability."""
    bound = best.to(tl.float64) + heat.to(tl.float64) * tl.log(least.to(tl.float64))
    near = bound.to(tl.float32)
    key = key_of(near) + tl.where(near.to(tl.float64) < bound, 1, 0)
    return tl.minimum(tl.maximum(key, LEAST), best_key)


@triton.jit
def _top_k_bound(keys, low, best_key, top_k, pieces: tl.constexpr):
    """A key that at least ``top_k`` of the largest logits of pieces reach, and so as many tokens, but hardly more
    pieces. ``low`` is reached by all of them, or by every token."""
    high, count = best_key + 1, best_key * 0 + pieces
    while _far(low, high, 1) & (count > top_k + 16):
        middle = _middle(low, high)
        reached = tl.sum((keys >= middle).to(tl.int32), axis=0)
        if reached >= top_k:
            low = middle
            count = reached
        else:
            high = middle
    return low


@triton.jit
def _top_p_bound(keys, weights, masses, low, best, best_key, heat, target, PIECE: tl.constexpr):
    """A key whose tokens weigh at least the target for certain: a piece that reaches it has its largest weight, and all
    of its mass but what fewer than ``PIECE`` tokens below the key can weigh. ``low`` is such a key."""
    high = best_key + 1
    while _far(low, high, 4096):
        middle = _middle(low, high)
        lost = PIECE * tl.exp((value_of(middle) - best) / heat)
        sure = tl.where(keys >= middle, tl.maximum(weights, masses - lost), 0.0)
        if tl.sum(sure.to(tl.float64), axis=0) >= target:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def _top_k_key(
    source, chosen, count, keys, weights, low, top_k, best, best_key, heat, vocab,
    PIECE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The largest key that ``top_k`` tokens reach, or one between it and the next token; ``low`` when no more reach
    it."""
    high = best_key + 1
    reached, _ = _measure(source, chosen, count, keys, weights, low, best, heat, vocab, PIECE, TILE)
    while _far(low, high, 1) & (reached > top_k):
        middle = _middle(low, high)
        tokens, _ = _measure(source, chosen, count, keys, weights, middle, best, heat, vocab, PIECE, TILE)
        if tokens >= top_k:
            low = middle
            reached = tokens
        else:
            high = middle
    return low


@triton.jit
def _top_p_key(
    source, chosen, count, keys, weights, low, reached, target, best, best_key, heat, vocab,
    PIECE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The largest key whose tokens weigh the target, or one between it and the next token; ``low``, which ``reached``
    tokens reach, weighs it."""
    high, beyond = best_key + 1, best_key * 0
    while _far(low, high, 1) & (reached - beyond > 1):
        middle = _middle(low, high)
        tokens, weight = _measure(source, chosen, count, keys, weights, middle, best, heat, vocab, PIECE, TILE)
        if weight >= target:
            low = middle
            reached = tokens
        else:
            high = middle
            beyond = tokens
    return low


@triton.jit
def _draw_from_chosen(
    source, chosen, count, keys, weights, key, uniform, best, heat, vocab, PIECE: tl.constexpr, TILE: tl.constexpr
):
    """The token where the cumulated weight of those not below the key exceeds its part of their total."""
    _, total = _measure(source, chosen, count, keys, weights, key, best, heat, vocab, PIECE, TILE)
    target = uniform * total
    start, before = count * 0, total * 0.0
    masses, _ = _masses(keys, weights, key)
    here = tl.sum(masses, axis=0)
    # The sums are those of the total in its order, so that the last of them exceeds the target.
    while (before + here <= target) & (start + TILE < count):
        before += here
        start += TILE
        more_keys, more_weights = _tile(source, chosen, start, count, best, heat, vocab, PIECE, TILE)
        masses, _ = _masses(more_keys, more_weights, key)
        here = tl.sum(masses, axis=0)
    found, before = _first_beyond(masses, before, target)
    piece = tl.load(chosen + start + found)
    return _token_in_piece(source, piece, key, best, heat, before, target, vocab, PIECE)


@triton.jit
def _draw_from_cuts(
    source, chosen, keys, weights, masses, there, best, best_key, heat, least, top_k, top_p, uniform, vocab,
    NUM_PIECES: tl.constexpr, PIECE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The draw of a row with a cut, from the largest keys, weights and masses of its pieces."""
    total = tl.sum(masses.to(tl.float64), axis=0)
    only_top_p = (top_k >= vocab) & (least <= 0.0)
    key = best_key * 0 + LEAST
    if least > 0.0:
        key = _min_p_key(best, best_key, heat, least)
    if top_k <= NUM_PIECES:
        low = tl.maximum(tl.min(tl.where(there, keys, best_key), axis=0), LEAST)
        key = tl.maximum(key, _top_k_bound(keys, low, best_key, top_k, keys.shape[0]))
    if only_top_p:
        # All tokens below weigh less than half of what may be left out.
        low = _min_p_key(best, best_key, heat, (1.0 - top_p) * total / (2.0 * vocab))
        # A little more than the target, since these sums are rounded in another order.
        key = _top_p_bound(keys, weights, masses, low, best, best_key, heat, top_p * total * 1.00001, PIECE)
    is_chosen = keys >= key
    count = tl.sum(is_chosen.to(tl.int32), axis=0)
    places = tl.cumsum(is_chosen.to(tl.int32), axis=0) - 1
    tl.store(chosen + places, tl.arange(0, keys.shape[0]), mask=is_chosen)
    tl.debug_barrier()
    tile_keys, tile_weights = _tile(source, chosen, count * 0, count, best, heat, vocab, PIECE, TILE)
    if top_k < vocab:
        key = _top_k_key(
            source, chosen, count, tile_keys, tile_weights, key, top_k, best, best_key, heat, vocab, PIECE, TILE
        )
    if top_p < 1.0:
        reached, kept = _measure(
            source, chosen, count, tile_keys, tile_weights, key, best, heat, vocab, PIECE, TILE
        )  # fmt: skip
        target = top_p * tl.where(only_top_p, total, kept)
        key = _top_p_key(
            source, chosen, count, tile_keys, tile_weights, key, reached, target, best, best_key, heat, vocab, PIECE,
            TILE,
        )  # fmt: skip
    return _draw_from_chosen(
        source, chosen, count, tile_keys, tile_weights, key, uniform, best, heat, vocab, PIECE, TILE
    )


@triton.jit
def _draw_kernel(
    logits, temperature, min_p, top_k, top_p, uniforms, pieces, chosen, ids, finite, vocab, row_stride,
    NUM_PIECES: tl.constexpr, PIECES: tl.constexpr, PIECE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, PIECES)
    there = piece < NUM_PIECES
    at = pieces + row * (3 * NUM_PIECES) + piece
    largest = tl.load(at, mask=there, other=float("-inf"))
    sums = tl.load(at + NUM_PIECES, mask=there, other=0.0)
    broken = tl.load(at + 2 * NUM_PIECES, mask=there, other=0.0)
    source = logits + row * row_stride
    heat, least, uniform = tl.load(temperature + row), tl.load(min_p + row), tl.load(uniforms + row)
    wanted, mass = tl.minimum(tl.load(top_k + row), vocab).to(tl.int32), tl.load(top_p + row)
    keys = key_of(largest)
    best_key = tl.max(keys, axis=0)
    best = value_of(best_key)
    tl.store(finite + row, tl.max(broken, axis=0) == 0.0)
    drawn = tl.full((), -1, tl.int64)
    if (best_key > NEVER) & (best_key < INFINITE):
        weights = tl.exp((largest - best) / heat)
        masses = sums * weights
        if (least > 0.0) | (wanted < vocab) | (mass < 1.0):
            drawn = _draw_from_cuts(
                source, chosen + row * NUM_PIECES, keys, weights, masses, there, best, best_key, heat, least, wanted,
                mass, uniform, vocab, NUM_PIECES, PIECE, TILE,
            )  # fmt: skip
        else:
            total = tl.sum(masses.to(tl.float64), axis=0)
            target = uniform * total
            found, before = _first_beyond(masses.to(tl.float64), total * 0.0, target)
            drawn = _token_in_piece(source, found, LEAST, best, heat, before, target, vocab, PIECE)
    tl.store(ids + row, drawn)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    min_p: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    uniforms: torch.Tensor,
    *,
    piece_warps: int = 8,
    draw_warps: int = 8,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``reference.sample``. logits of any float type [rows, vocab] with contiguous rows; the others contiguous
    [rows]. Two runs draw the same tokens."""
    rows, vocab = logits.shape
    if not vocab:
        raise ValueError("needs a token in every row")
    check_rows(logits)
    check_vectors(rows, temperature, min_p, top_k, top_p, uniforms)
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    finite = torch.empty(rows, dtype=torch.bool, device=logits.device)
    if rows:
        num_pieces = triton.cdiv(vocab, PIECE)
        padded = triton.next_power_of_2(num_pieces)
        pieces = torch.empty((rows, MEASURES, num_pieces), dtype=torch.float32, device=logits.device)
        chosen = torch.empty((rows, num_pieces), dtype=torch.int32, device=logits.device)
        tile = min(TILE, padded)
        _piece_kernel[(rows * triton.cdiv(num_pieces, tile),)](
            logits, temperature, pieces, vocab, logits.stride(0), NUM_PIECES=num_pieces, PIECE=PIECE, TILE=tile,
            num_warps=piece_warps,
        )  # fmt: skip
        _draw_kernel[(rows,)](
            logits, temperature, min_p, top_k, top_p, uniforms, pieces, chosen, ids, finite, vocab, logits.stride(0),
            NUM_PIECES=num_pieces, PIECES=padded, PIECE=PIECE, TILE=tile, num_warps=draw_warps,
        )  # fmt: skip
    return ids, finite


AOT = (
    AotCase(
        kernel=_piece_kernel,
        signature={
            "logits": "*bf16", "temperature": "*fp32", "pieces": "*fp32", "vocab": "i32", "row_stride": "i32",
        },
        constants={"NUM_PIECES": 2004, "PIECE": PIECE, "TILE": TILE},
        num_warps=8,
    ),
    AotCase(
        kernel=_draw_kernel,
        signature={
            "logits": "*bf16", "temperature": "*fp32", "min_p": "*fp32", "top_k": "*i64", "top_p": "*fp64",
            "uniforms": "*fp64", "pieces": "*fp32", "chosen": "*i32", "ids": "*i64", "finite": "*i1", "vocab": "i32",
            "row_stride": "i32",
        },
        constants={"NUM_PIECES": 2004, "PIECES": 2048, "PIECE": PIECE, "TILE": TILE},
        num_warps=8,
    ),
)  # fmt: skip
