"""The sampled tokens that stay on the device between steps, in Triton. Knows no plan: a seat is a number here."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import AotCase
from penstock.kernels.triton.layout import check_vectors

BLOCK_TOKENS = 256


@triton.jit(do_not_specialize=["count"])
def _resolve_tokens_kernel(token_ids, last_tokens, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tokens = tl.load(token_ids + at, mask=at < count, other=0)
    sampled = tl.load(last_tokens + (-1 - tokens), mask=tokens < 0, other=0)
    tl.store(out + at, tl.where(tokens < 0, sampled, tokens), mask=at < count)


@triton.jit(do_not_specialize=["count"])
def _keep_tokens_kernel(last_tokens, seats, token_ids, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    seat = tl.load(seats + at, mask=at < count, other=0)
    tokens = tl.load(token_ids + at, mask=at < count, other=0)
    tl.store(last_tokens + seat, tl.maximum(tokens, 0), mask=at < count)


def resolve_tokens(token_ids: torch.Tensor, last_tokens: torch.Tensor) -> torch.Tensor:
    """See ``reference.resolve_tokens``. Both int64 and contiguous; seats are not checked."""
    count = token_ids.shape[0]
    check_vectors(count, token_ids)
    check_vectors(last_tokens.numel(), last_tokens)
    out = torch.empty_like(token_ids)
    if count:
        _resolve_tokens_kernel[(triton.cdiv(count, BLOCK_TOKENS),)](
            token_ids, last_tokens, out, count, BLOCK=BLOCK_TOKENS, num_warps=2
        )
    return out


def keep_tokens(last_tokens: torch.Tensor, seats: torch.Tensor, token_ids: torch.Tensor) -> None:
    """See ``reference.keep_tokens``. All int64 and contiguous; seats are not checked."""
    count = seats.shape[0]
    check_vectors(count, seats, token_ids)
    check_vectors(last_tokens.numel(), last_tokens)
    if count:
        _keep_tokens_kernel[(triton.cdiv(count, BLOCK_TOKENS),)](
            last_tokens, seats, token_ids, count, BLOCK=BLOCK_TOKENS, num_warps=2
        )


AOT = (
    AotCase(
        kernel=_resolve_tokens_kernel,
        signature={"token_ids": "*i64", "last_tokens": "*i64", "out": "*i64", "count": "i32"},
        constants={"BLOCK": BLOCK_TOKENS},
        num_warps=2,
    ),
    AotCase(
        kernel=_keep_tokens_kernel,
        signature={"last_tokens": "*i64", "seats": "*i64", "token_ids": "*i64", "count": "i32"},
        constants={"BLOCK": BLOCK_TOKENS},
        num_warps=2,
    ),
)
