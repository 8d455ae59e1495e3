"""What requests change in their logits, in Triton: one pass over the logits, in place. Masks only write. Knows no
request.

The programs of a row that find a logit that is not finite write the same value to the same place: which of them is last
changes nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import AotCase
from penstock.kernels.triton.layout import check_rows, check_vectors

BLOCK_TOKENS = 2048
BLOCK_ROWS = 128
RULES, PENALTIES = 4, 3  # of a seat


@triton.jit
def _edit_logits_kernel(
    logits, finite, seats, rules, penalties, words, shifts, vocab, row_stride, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = token < vocab
    target = logits + row * row_stride + token
    values = tl.load(target, mask=there, other=0.0)
    broken = tl.max(tl.where(tl.abs(values) < float("inf"), 0, 1), axis=0)
    if broken != 0:
        tl.store(finite + row, broken == 0)
    seat = tl.load(seats + row)
    place = tl.load(rules + seat * 4)
    if place >= 0:
        held, shifted, penalised = (
            tl.load(rules + seat * 4 + 1), tl.load(rules + seat * 4 + 2), tl.load(rules + seat * 4 + 3),
        )  # fmt: skip
        seen = tl.load(words + place * vocab + token, mask=there & ((held > 0) | (penalised != 0)), other=0)
        values = tl.where(((seen & 0x40000000) != 0) & (held > 0), float("-inf"), values)
        values += tl.load(shifts + place * vocab + token, mask=there & (shifted != 0), other=0.0)
        if penalised != 0:
            repetition = tl.load(penalties + seat * 3)
            presence = tl.load(penalties + seat * 3 + 1)
            frequency = tl.load(penalties + seat * 3 + 2)
            produced = (seen & 0x3FFFFFFF).to(tl.float32)
            turned = tl.where(values > 0.0, values / repetition, values * repetition)
            turned -= frequency * produced + tl.where(produced > 0.0, presence, 0.0)
            values = tl.where((seen < 0) | (produced > 0.0), turned, values)
        tl.store(target, values, mask=there)


@triton.jit(do_not_specialize=["num_words"])
def _mask_logits_kernel(logits, rows, masks, vocab, row_stride, num_words, BLOCK: tl.constexpr):
    which = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + which)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = token < vocab
    words = tl.load(masks + which * num_words + token // 32, mask=there, other=-1)
    forbidden = ((words >> (token % 32)) & 1) == 0
    tl.store(logits + row * row_stride + token, float("-inf"), mask=there & forbidden)


@triton.jit(do_not_specialize=["count"])
def _count_tokens_kernel(words, rules, seats, token_ids, count, vocab, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    seat = tl.load(seats + at, mask=at < count, other=0)
    token = tl.load(token_ids + at, mask=at < count, other=-1)
    place = tl.load(rules + seat * 4, mask=at < count, other=-1)
    counts = (place >= 0) & (token >= 0)
    word = words + place * vocab + token
    tl.store(word, tl.load(word, mask=counts, other=0) + 1, mask=counts)
    held = tl.load(rules + seat * 4 + 1, mask=counts, other=0)
    tl.store(rules + seat * 4 + 1, tl.maximum(held - 1, 0), mask=counts)


def edit_logits(
    logits: torch.Tensor,
    finite: torch.Tensor,
    seats: torch.Tensor,
    rules: torch.Tensor,
    penalties: torch.Tensor,
    words: torch.Tensor,
    shifts: torch.Tensor,
    *,
    block_tokens: int = BLOCK_TOKENS,
    num_warps: int = 4,
) -> None:
    """See ``reference.edit_logits``. Rows of logits contiguous, all else contiguous; seats are not checked."""
    rows, vocab = logits.shape
    check_rows(logits)
    check_vectors(rows, finite, seats)
    _check_tables(vocab, rules, words, shifts)
    if penalties.shape[1:] != (PENALTIES,) or not penalties.is_contiguous():
        raise ValueError(f"needs penalties [seats, {PENALTIES}], found {tuple(penalties.shape)}")
    finite.fill_(True)
    if rows:
        _edit_logits_kernel[(rows, triton.cdiv(vocab, block_tokens))](
            logits, finite, seats, rules, penalties, words, shifts, vocab, logits.stride(0), BLOCK=block_tokens,
            num_warps=num_warps,
        )  # fmt: skip


def mask_logits(
    logits: torch.Tensor,
    rows: torch.Tensor,
    masks: torch.Tensor,
    *,
    block_tokens: int = BLOCK_TOKENS,
    num_warps: int = 4,
) -> None:
    """See ``reference.mask_logits``. Rows of logits contiguous, all else contiguous; row numbers are not checked."""
    count, vocab = rows.shape[0], logits.shape[1]
    check_rows(logits)
    check_vectors(count, rows)
    if masks.shape[:1] != (count,) or 32 * masks.shape[1] < vocab or not masks.is_contiguous():
        raise ValueError(f"needs contiguous masks of {count} rows and {vocab} bits, found {tuple(masks.shape)}")
    if count:
        _mask_logits_kernel[(count, triton.cdiv(vocab, block_tokens))](
            logits, rows, masks, vocab, logits.stride(0), masks.shape[1], BLOCK=block_tokens, num_warps=num_warps
        )


def count_tokens(words: torch.Tensor, rules: torch.Tensor, seats: torch.Tensor, token_ids: torch.Tensor) -> None:
    """See ``reference.count_tokens``. All contiguous; seats and tokens are not checked."""
    count, vocab = seats.shape[0], words.shape[1]
    check_vectors(count, seats, token_ids)
    _check_tables(vocab, rules, words)
    if count:
        _count_tokens_kernel[(triton.cdiv(count, BLOCK_ROWS),)](
            words, rules, seats, token_ids, count, vocab, BLOCK=BLOCK_ROWS, num_warps=1
        )


def _check_tables(vocab: int, rules: torch.Tensor, *tables: torch.Tensor) -> None:
    if rules.shape[1:] != (RULES,) or not rules.is_contiguous():
        raise ValueError(f"needs rules [seats, {RULES}], found {tuple(rules.shape)}")
    if any(table.shape[1:] != (vocab,) or not table.is_contiguous() for table in tables):
        raise ValueError(f"needs tables [places, {vocab}], found {[tuple(table.shape) for table in tables]}")


AOT = (
    AotCase(
        kernel=_edit_logits_kernel,
        signature={
            "logits": "*fp32", "finite": "*i1", "seats": "*i64", "rules": "*i64", "penalties": "*fp32",
            "words": "*i32", "shifts": "*fp32", "vocab": "i32:16", "row_stride": "i32:16",
        },
        constants={"BLOCK": BLOCK_TOKENS},
    ),
    AotCase(
        kernel=_mask_logits_kernel,
        signature={
            "logits": "*fp32", "rows": "*i64", "masks": "*i32", "vocab": "i32:16", "row_stride": "i32:16",
            "num_words": "i32",
        },
        constants={"BLOCK": BLOCK_TOKENS},
    ),
    AotCase(
        kernel=_count_tokens_kernel,
        signature={
            "words": "*i32", "rules": "*i64", "seats": "*i64", "token_ids": "*i64", "count": "i32", "vocab": "i32:16",
        },
        constants={"BLOCK": BLOCK_ROWS},
        num_warps=1,
    ),
)  # fmt: skip
