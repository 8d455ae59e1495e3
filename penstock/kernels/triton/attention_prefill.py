"""Paged attention of rows with many queries, whose keys all lie in the pool (``rotate_and_write`` puts new ones there).

Knows no layer. FlashAttention-2 (Dao 2023) with the heads of a group packed: a tile of queries holds all query heads of
one KV head for neighbouring tokens. Tiles of keys that every query of a tile sees whole are not masked. A program finds
its row by summing over the rows' lengths, so that the host needs to know none of them.

With ``batch_invariant`` the bits of a query's result follow from the query and from what it sees alone. There is one
tiling, so that a line of a tile is summed by the same threads in the same order whichever line it is. Tiles of keys
begin at multiples of their size, and are all masked, so that one loop handles them: a key that a query does not see has
the weight 0 whatever it is, and a tile of which it sees nothing leaves its sums as they are (in front of the first one,
0 * 0 + 0; behind the last one, x * 1 + 0). So neither the queries beside it, nor where a prompt was cut, nor how many
keys there are behind it make a difference.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import TARGETS, AotCase, Target
from penstock.kernels.triton.attention import (
    PagedRows,
    Scoring,
    aot_pools,
    attend_tile,
    beginning,
    check_heads,
    check_pool,
    float8_way,
    padded_head_dim,
    plain_rows,
    pool_elements,
    write_factors,
)
from penstock.kernels.triton.card import NONE, Capability, capability_of, multiplies_from_shared_memory

# (padded head_dim up to, bytes of an element of the queries up to, BLOCK_M, BLOCK_N, num_warps, num_stages)
TILES = (
    (64, 2, 128, 128, 8, 3),
    (128, 2, 256, 64, 8, 3),  # 402 TFLOP/s on an H200 (16 x 3,500, blocks of 16), with 128 queries and heads 319
    (256, 2, 128, 64, 8, 2),
    (128, 4, 32, 32, 4, 2),
    (256, 4, 16, 16, 4, 2),
)
# Of matrix units that take no operands from shared memory, so that registers are few.
TILES_OF_REGISTERS = ((128, 2, 64, 32, 4, 3), (256, 2, 64, 32, 8, 2), *TILES[-2:])
# One each, as the module's docstring has it. 64 lines are the least that wgmma multiplies.
INVARIANT_TILES = ((128, 2, 64, 64, 4, 3), (256, 2, 64, 32, 4, 3), *TILES[-2:])
INVARIANT_TILES_OF_REGISTERS = ((128, 2, 64, 32, 4, 3), (256, 2, 64, 32, 8, 2), *TILES[-2:])
SCANNED_ROWS = 128  # lengths that a program reads at once


def prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    rows: PagedRows,
    out: torch.Tensor,
    scoring: Scoring,
    *,
    kv_scales: tuple[float, float] = (1.0, 1.0),
    more_than: int = 0,
    batch_invariant: bool = False,
    block_m: int | None = None,
    block_n: int | None = None,
    num_warps: int | None = None,
    num_stages: int | None = None,
) -> None:
    """Causal attention for the rows that have more than ``more_than`` queries; others of ``out`` are left as they are.

    q [tokens, heads, d], rotated, tokens at any stride; kv [blocks, 2, kv_heads, block_tokens, d], any block stride,
    with ``kv_scales`` (see ``attention``); out [tokens, heads, d]. ``batch_invariant``: see the module's docstring.
    """
    tokens, heads, head_dim = q.shape
    kv_heads = kv.shape[2]
    block_tokens = check_pool(kv, kv_heads, head_dim)
    check_heads(q, out)
    scoring.check_sinks(heads)
    write_factors(kv, kv_scales)
    float8 = float8_way(kv)
    padded = padded_head_dim(head_dim)
    tile = tile_of(capability_of(q.device), padded, q.element_size(), batch_invariant=batch_invariant)
    group = heads // kv_heads
    block_m = max(block_m or tile[0], triton.next_power_of_2(group))
    # No row leaves more than one tile that is not full.
    max_tiles = tokens // (block_m // group) + rows.num_rows
    _prefill[(max_tiles * kv_heads,)](
        q, pool_elements(kv), out, rows.query_start, rows.kv_lens, rows.block_table, *scoring.arguments(kv_scales[0]),
        rows.num_rows, more_than, q.stride(0), out.stride(0), kv.stride(0), rows.block_table.stride(0), scoring.sinks,
        float(kv_scales[1]) if float8 else None,
        KV_HEADS=kv_heads, GROUP=group, D=head_dim, D_PAD=padded, BLOCK_TOKENS=block_tokens, BLOCK_M=block_m,
        BLOCK_N=block_n or tile[1], SCANNED=SCANNED_ROWS, HAS_WINDOW=scoring.window is not None,
        HAS_CAP=scoring.soft_cap is not None, HAS_SINKS=scoring.sinks is not None, FLOAT8=float8,
        ALL_MASKED=batch_invariant, num_warps=num_warps or tile[2], num_stages=num_stages or tile[3],
    )  # fmt: skip


def tile_of(
    capability: Capability, padded_head_dim: int, element_size: int, *, batch_invariant: bool = False
) -> tuple[int, int, int, int]:
    """(BLOCK_M, BLOCK_N, num_warps, num_stages)."""
    if multiplies_from_shared_memory(capability):
        tiles = INVARIANT_TILES if batch_invariant else TILES
    else:
        tiles = INVARIANT_TILES_OF_REGISTERS if batch_invariant else TILES_OF_REGISTERS
    return next(tile[2:] for tile in tiles if padded_head_dim <= tile[0] and element_size <= tile[1])


@triton.jit(
    do_not_specialize=["window", "num_rows", "more_than", "table_stride"],
    do_not_specialize_on_alignment=["query_start_ptr", "kv_lens_ptr", "table_ptr"],
)
def _prefill(
    q_ptr, kv_ptr, out_ptr, query_start_ptr, kv_lens_ptr, table_ptr, scale, soft_cap, window, num_rows, more_than,
    q_stride, out_stride, block_stride, table_stride, sinks_ptr, value_scale, KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SCANNED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr, FLOAT8: tl.constexpr, ALL_MASKED: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one row and KV head."""
    QUERIES: tl.constexpr = BLOCK_M // GROUP
    head = tl.program_id(0) % KV_HEADS
    row, tile, num_tiles = _find_row(
        query_start_ptr, num_rows, more_than, tl.program_id(0) // KV_HEADS, QUERIES, SCANNED
    )
    if num_tiles == 0:
        return
    row_start = tl.load(query_start_ptr + row)
    num_queries = (tl.load(query_start_ptr + row + 1) - row_start).to(tl.int32)
    history = tl.load(kv_lens_ptr + row).to(tl.int32) - num_queries
    first_query = (num_tiles - 1 - tile) * QUERIES  # the longest first: a short tail
    first = history + first_query
    last = history + tl.minimum(first_query + QUERIES, num_queries) - 1

    line = tl.arange(0, BLOCK_M)
    query = first_query + line // GROUP
    valid = (query < num_queries) & (line < QUERIES * GROUP)
    token = row_start + query
    q_head = head * GROUP + line % GROUP
    q = plain_rows(q_ptr, token * q_stride + q_head * D, valid, D, D_PAD)
    acc = tl.zeros([BLOCK_M, D_PAD], dtype=tl.float32)
    total, top = beginning(sinks_ptr, q_head, valid, HAS_SINKS, BLOCK_M)
    keys_ptr = kv_ptr + head * (BLOCK_TOKENS * D)
    row_table_ptr = table_ptr + row * table_stride

    # Keys [low, last]; those of the tiles in [unmasked, masked) are seen by all queries.
    low = 0
    if HAS_WINDOW:
        low = tl.maximum(first - window + 1, 0)
    unmasked = low // BLOCK_N * BLOCK_N
    masked = unmasked
    if not ALL_MASKED:
        masked = (first + 1) // BLOCK_N * BLOCK_N
    if HAS_WINDOW and not ALL_MASKED:
        unmasked = tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK_N) * BLOCK_N
        unmasked = tl.minimum(unmasked, tl.cdiv(last + 1, BLOCK_N) * BLOCK_N)
        masked = tl.maximum(masked, unmasked)
        for start in tl.range(low // BLOCK_N * BLOCK_N, unmasked, BLOCK_N):
            acc, total, top = attend_tile(
                q, acc, total, top, keys_ptr, keys_ptr + KV_HEADS * (BLOCK_TOKENS * D), row_table_ptr, start, low,
                last + 1, history + query, scale, soft_cap, window, block_stride, True, HAS_WINDOW, HAS_CAP, D, D_PAD,
                BLOCK_TOKENS, BLOCK_N, FLOAT8,
            )  # fmt: skip
    if not ALL_MASKED:
        for start in tl.range(unmasked, masked, BLOCK_N):
            acc, total, top = attend_tile(
                q, acc, total, top, keys_ptr, keys_ptr + KV_HEADS * (BLOCK_TOKENS * D), row_table_ptr, start, low,
                last + 1, history + query, scale, soft_cap, window, block_stride, False, HAS_WINDOW, HAS_CAP, D, D_PAD,
                BLOCK_TOKENS, BLOCK_N, FLOAT8,
            )  # fmt: skip
    for start in tl.range(masked, last + 1, BLOCK_N):
        acc, total, top = attend_tile(
            q, acc, total, top, keys_ptr, keys_ptr + KV_HEADS * (BLOCK_TOKENS * D), row_table_ptr, start, low,
            last + 1, history + query, scale, soft_cap, window, block_stride, True, HAS_WINDOW, HAS_CAP, D, D_PAD,
            BLOCK_TOKENS, BLOCK_N, FLOAT8,
        )  # fmt: skip

    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    if FLOAT8 != "":
        acc *= value_scale
    column = tl.arange(0, D_PAD)
    target = out_ptr + (token * out_stride + q_head * D)[:, None] + column[None, :]
    tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None] & (column < D)[None, :])


@triton.jit
def _find_row(
    query_start_ptr, num_rows, more_than, tile, QUERIES: tl.constexpr, SCANNED: tl.constexpr
):  # fmt: skip
    """The row of the step's tile ``tile``, the tile's number in it, how many tiles the row has: 0 beyond the last."""
    row = 0
    before = 0  # tiles of the rows that were read
    first = 0  # tiles of the rows in front of ``row``
    num_tiles = 0
    for base in range(0, num_rows, SCANNED):
        rows = base + tl.arange(0, SCANNED)
        there = rows < num_rows
        start = tl.load(query_start_ptr + rows, mask=there, other=0)
        count = (tl.load(query_start_ptr + rows + 1, mask=there, other=0) - start).to(tl.int32)
        tiles = tl.where(there & (count > more_than), (count + QUERIES - 1) // QUERIES, 0)
        ends = before + tl.cumsum(tiles, 0)
        passed = there & (ends <= tile)
        row += tl.sum(passed.to(tl.int32), 0)
        first += tl.sum(tl.where(passed, tiles, 0), 0)
        num_tiles += tl.sum(tl.where((ends > tile) & (ends - tiles <= tile), tiles, 0), 0)
        before += tl.sum(tiles, 0)
    return tl.cast(row, tl.int64), tile - first, num_tiles


_SWITCHED = {"sinks_ptr": "*fp32", "value_scale": "fp32"}


def _case(target: Target, float8: str, pool: str, batch_invariant: bool) -> AotCase:
    """Heads of 128 values. With a cache in float8 sinks and a window are there as well."""
    block_m, block_n, warps, stages = tile_of(target.capability, 128, 2, batch_invariant=batch_invariant)
    return AotCase(
        kernel=_prefill,
        signature={
            "q_ptr": "*bf16",
            "kv_ptr": pool,
            "out_ptr": "*bf16",
            "query_start_ptr": "*i64",
            "kv_lens_ptr": "*i64",
            "table_ptr": "*i64",
            "scale": "fp32",
            "soft_cap": "fp32",
            "window": "i32",
            "num_rows": "i32",
            "more_than": "i32",
            "q_stride": "i32:16",
            "out_stride": "i32:16",
            "block_stride": "i32:16",
            "table_stride": "i32",
            **(_SWITCHED if float8 else {}),
        },
        constants={
            **({} if float8 else dict.fromkeys(_SWITCHED)),
            "KV_HEADS": 8,
            "GROUP": 4,
            "D": 128,
            "D_PAD": 128,
            "BLOCK_TOKENS": 16,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "SCANNED": SCANNED_ROWS,
            "HAS_WINDOW": float8 != "",
            "HAS_CAP": False,
            "HAS_SINKS": float8 != "",
            "FLOAT8": float8,
            "ALL_MASKED": batch_invariant,
        },
        num_warps=warps,
        num_stages=stages,
        targets=(target.name,),
    )


AOT: tuple[AotCase, ...] = tuple(
    _case(target, float8, pool, batch_invariant)
    for target in TARGETS.values()
    for float8, pool in aot_pools(target)
    for batch_invariant in ((False, True) if target.capability != NONE and not float8 else (False,))
)
