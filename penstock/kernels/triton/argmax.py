"""The largest logit of every row in Triton, in one launch. Knows no weight and no sampling.

A row is split over several programs; the last of them to arrive compares what the others found. The order in which
they arrive changes nothing: value and place are one integer, and the largest of integers has no order.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import AotCase
from penstock.kernels.triton.layout import check_rows
from penstock.kernels.triton.order import BELOW_ALL, key_of, value_of

BLOCK_TOKENS = 2048
NUM_PROGRAMS = 1024  # that fill the card
MAX_SPLITS = 64
MAX_SPLIT_ROWS = NUM_PROGRAMS // 2


@triton.jit
def _write(found, ids, largest, row):
    tl.store(ids + row, 0x7FFFFFFF - (found & 0x7FFFFFFF))
    tl.store(largest + row, value_of((found >> 32).to(tl.int32)))


@triton.jit
def _argmax_kernel(
    logits, ids, largest, parts, arrivals, vocab, row_stride, span, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    row, part = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    start = part * span
    end = tl.minimum(start + span, vocab)
    best = tl.full([BLOCK], BELOW_ALL, tl.int32)
    place = tl.full([BLOCK], 0, tl.int32)
    source = logits + row.to(tl.int64) * row_stride
    for at in range(start, end, BLOCK):
        token = at + tl.arange(0, BLOCK)
        values = tl.load(source + token, mask=token < end, other=0.0).to(tl.float32)
        keys = tl.where(token < end, key_of(values), BELOW_ALL)
        place = tl.where(keys > best, token, place)
        best = tl.maximum(keys, best)
    # The place counts down below the key, so that the largest of these integers is the first of equal keys.
    found = tl.max((best.to(tl.int64) << 32) + (0x7FFFFFFF - place), axis=0)
    if SPLITS > 1:
        tl.store(parts + tl.program_id(0), found)
        tl.debug_barrier()
        if tl.atomic_add(arrivals + row, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
            # Past the first-level cache, which may hold what was there before.
            others = tl.load(parts + row * SPLITS + tl.arange(0, SPLITS), cache_modifier=".cg")
            _write(tl.max(others, axis=0), ids, largest, row)
            tl.store(arrivals + row, 0)
    else:
        _write(found, ids, largest, row)


@functools.cache
def _arrivals(device: torch.device) -> torch.Tensor:
    """Counters that are zero between launches. Launches on one device follow each other on one stream.

    Raises RuntimeError in a capture: the zeros would be written by the graph alone, into memory of the graph's.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("argmax has to run once before it is captured in a graph")
    return torch.zeros(MAX_SPLIT_ROWS, dtype=torch.int32, device=device)


def argmax(logits: torch.Tensor, *, splits: int = 0, num_warps: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``reference.argmax``. logits [rows, vocab] with contiguous rows; ``splits`` a power of two."""
    rows, vocab = logits.shape
    if not vocab:
        raise ValueError("needs a token in every row")
    check_rows(logits)
    ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    largest = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        splits = splits or _splits_for(rows, vocab)
        if splits > 1 and rows > MAX_SPLIT_ROWS:
            raise ValueError(f"splits at most {MAX_SPLIT_ROWS} rows, found {rows}")
        parts = torch.empty(rows * splits, dtype=torch.int64, device=logits.device) if splits > 1 else ids
        span = triton.cdiv(triton.cdiv(vocab, splits), BLOCK_TOKENS) * BLOCK_TOKENS
        _argmax_kernel[(rows * splits,)](
            logits, ids, largest, parts, _arrivals(logits.device), vocab, logits.stride(0), span,
            SPLITS=splits, BLOCK=BLOCK_TOKENS, num_warps=num_warps,
        )  # fmt: skip
    return ids, largest


def _splits_for(rows: int, vocab: int) -> int:
    """The largest power of two that gives every program a block, and the card no more programs than fill it."""
    most = min(MAX_SPLITS, NUM_PROGRAMS // rows, triton.cdiv(vocab, BLOCK_TOKENS))
    return 1 << (most.bit_length() - 1) if most > 1 else 1


AOT = (
    AotCase(
        kernel=_argmax_kernel,
        signature={
            "logits": "*bf16", "ids": "*i64", "largest": "*fp32", "parts": "*i64", "arrivals": "*i32", "vocab": "i32",
            "row_stride": "i32", "span": "i32",
        },
        constants={"SPLITS": 32, "BLOCK": BLOCK_TOKENS},
        num_warps=8,
    ),
)  # fmt: skip
