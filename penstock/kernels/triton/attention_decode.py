"""Paged attention of rows with few queries: decoding and the verification of drafts, in one launch per layer.

Knows no layer. All query heads of a KV head and all queries of a row are the rows of one tile, so that keys and values
are read once. The length of a row is split into parts (Flash-Decoding, Dao et al. 2023) whose bounds follow from the
row's length, the number of splits and the tile alone; the program that finishes last merges all parts of its
row and KV head in their order, so that the bits do not depend on which one that was. The sink of a head, where it has
one, is seen by the first part, which every row has.

A program may also rotate its queries, and rotate and write those new keys and values that lie in its part: nobody else
reads them in this launch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import RESERVED_BYTES, TARGETS, AotCase, Target
from penstock.kernels.triton.attention import (
    MIN_TILE,
    HeadNorms,
    PagedRows,
    Scoring,
    aot_pools,
    attend_tile,
    beginning,
    check_heads,
    check_norms,
    check_pool,
    check_tables,
    float8_way,
    padded_head_dim,
    plain_rows,
    pool_elements,
    rotated_rows,
    write_factors,
)
from penstock.kernels.triton.card import NONE, device_sizes
from penstock.kernels.triton.early import early_for, early_launch, launches_early, wait_for_the_kernel_before
from penstock.kernels.triton.float8 import as_entries

MAX_TILE_ROWS = 64  # queries times heads of a group; more is for attention_prefill
MAX_SPLITS = 64
PROGRAMS_PER_PROCESSOR = 4  # that splits are to reach
MERGED_VALUES = 8192  # of one read of parts
# (padded head_dim up to, bytes of an element of the queries up to, BLOCK_N, num_warps, num_stages). Of two stages one
# is that of the block table: five stages have the keys and values of two tiles on their way.
TILES = ((128, 2, 64, 4, 5), (256, 2, 32, 4, 5), (128, 4, 32, 4, 2), (256, 4, 16, 4, 2))
# Of the first of them by the rows times KV heads from which on they are better. H200, 577 tokens, 8 KV heads, us with
# these, and with two programs a processor in tiles of 64/4/3 (8 to 32 rows 32/2/5): 1 row 7.6 and 8.3, 4 rows 9.5 and
# 14.1, 8 rows 11.8 and 14.9, 16 rows 16.9 and 21.4, 32 rows 27.2 and 31.0, 128 rows 83.1 and 83.4.
TILES_BY_ROWS = ((512, (64, 2, 3)), (24, (16, 2, 8)), (0, (64, 2, 4)))


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where the parts of a row meet; shared by the layers of a step. ``counters`` are zero between launches."""

    num_splits: int
    queries: int  # that a row may have
    parts: torch.Tensor | None = None  # float32 [rows, kv_heads, num_splits, queries * group, head_dim]
    logs: torch.Tensor | None = None  # float32 [rows, kv_heads, num_splits, queries * group]
    counters: torch.Tensor | None = None  # int32 [rows, kv_heads]


def queries_of_tile(group: int, max_query_len: int) -> int:
    """Queries of a row that this kernel takes when rows have up to ``max_query_len``: all, or those that cost nothing
    beside one, because a tile has room for them. One of three numbers, since each is compiled by itself."""
    room = max(1, MIN_TILE // group)
    sizes = (1, room, MAX_TILE_ROWS // group)
    return next((size for size in sizes if max_query_len <= size), room)


def choose_num_splits(num_rows: int, kv_heads: int, num_processors: int) -> int:
    """From the number of rows alone: lengths are not known when a step is recorded."""
    wanted = PROGRAMS_PER_PROCESSOR * num_processors // max(1, num_rows * kv_heads)
    return max(1, min(MAX_SPLITS, wanted))


def tile_of(
    programs: int, padded_head_dim: int, element_size: int, shared_bytes: int = 228 << 10
) -> tuple[int, int, int]:
    """(BLOCK_N, num_warps, num_stages) for so many rows times KV heads, on a multiprocessor with so much shared memory:
    keys and values of all stages but two lie there."""
    if padded_head_dim <= TILES[0][0] and element_size <= TILES[0][1]:
        block_n, warps, stages = next(tile for least, tile in TILES_BY_ROWS if programs >= least)
    else:
        block_n, warps, stages = next(
            tile[2:] for tile in TILES if padded_head_dim <= tile[0] and element_size <= tile[1]
        )
    room = (shared_bytes - RESERVED_BYTES) // (2 * block_n * padded_head_dim * element_size)
    return block_n, warps, min(stages, 2 + room)


def make_workspace(
    num_rows: int, heads: int, kv_heads: int, head_dim: int, *, queries: int, num_splits: int, device: torch.device
) -> Workspace:
    if num_splits == 1:
        return Workspace(1, queries)
    shape = (num_rows, kv_heads, num_splits, queries * (heads // kv_heads))
    return Workspace(
        num_splits,
        queries,
        torch.empty((*shape, head_dim), dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.zeros(shape[:2], dtype=torch.int32, device=device),
    )


def decode(
    qk: torch.Tensor,
    v: torch.Tensor | None,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    kv: torch.Tensor,
    rows: PagedRows,
    out: torch.Tensor,
    scoring: Scoring,
    workspace: Workspace,
    *,
    norms: HeadNorms | None = None,
    kv_scales: tuple[float, float] = (1.0, 1.0),
    block_n: int | None = None,
    num_warps: int | None = None,
    num_stages: int | None = None,
) -> None:
    """Attend for the rows that have 1 to ``workspace.queries`` queries; others of ``out`` are left as they are.

    With ``v`` [tokens, kv_heads, d]: qk [tokens, heads + kv_heads, d] is normalized by ``norms``, rotated by ``tables``
    (as ``rotary`` wants them; None: not) and keys and values are written to ``rows.slots`` first. Without: qk starts
    with rotated queries and the pool holds the keys. kv [blocks, 2, kv_heads, block_tokens, d], any block stride, with
    ``kv_scales`` (see ``attention``); out [tokens, heads, d].
    """
    kv_heads, head_dim = kv.shape[2], kv.shape[4]
    block_tokens = check_pool(kv, kv_heads, head_dim)
    check_heads(qk, out, *([] if v is None else [v]))
    check_tables(tables, qk.shape[0], head_dim)
    scoring.check_sinks(out.shape[1])
    weight, eps = check_norms(norms, qk)
    padded = padded_head_dim(head_dim)
    tile = tile_of(rows.num_rows * kv_heads, padded, qk.element_size(), device_sizes(qk.device)[1])
    group, queries = out.shape[1] // kv_heads, workspace.queries
    cos, sin = tables or (None, None)
    pdl = v is not None and launches_early(qk)
    merged_rows = triton.next_power_of_2(queries * group)
    factors = write_factors(kv, kv_scales)
    float8 = float8_way(kv)
    _decode[(kv_heads, workspace.num_splits, rows.num_rows)](
        qk, v, cos, sin, pool_elements(kv), out, workspace.parts, workspace.logs, workspace.counters,
        rows.query_start, rows.kv_lens, rows.block_table, rows.slots,
        *scoring.arguments(kv_scales[0]), workspace.num_splits,
        qk.stride(0), 0 if v is None else v.stride(0), out.stride(0), kv.stride(0), rows.block_table.stride(0),
        scoring.sinks, *factors, float(kv_scales[1]) if float8 else None, weight, eps,
        GROUP=group, QUERIES=queries, QUERIES_PAD=triton.next_power_of_2(queries), D=head_dim, D_PAD=padded,
        BLOCK_TOKENS=block_tokens, BLOCK_M=max(MIN_TILE, merged_rows), BLOCK_N=block_n or tile[0],
        MERGED_ROWS=merged_rows, MERGED_PARTS=max(1, min(MAX_SPLITS, MERGED_VALUES // (merged_rows * padded))),
        WRITES=v is not None, ROTATED=tables is not None, NORMED=norms is not None,
        HAS_WINDOW=scoring.window is not None, HAS_CAP=scoring.soft_cap is not None,
        HAS_SINKS=scoring.sinks is not None, FLOAT8=float8,
        SPLIT=workspace.num_splits > 1, PDL=pdl, num_warps=num_warps or tile[1], num_stages=num_stages or tile[2],
        **early_launch(pdl),
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["window", "num_splits", "table_stride"],
    do_not_specialize_on_alignment=["query_start_ptr", "kv_lens_ptr", "table_ptr", "slots_ptr"],
)
def _decode(
    q_ptr, v_ptr, cos_ptr, sin_ptr, kv_ptr, out_ptr, parts_ptr, logs_ptr, counters_ptr, query_start_ptr, kv_lens_ptr,
    table_ptr, slots_ptr, scale, soft_cap, window, num_splits, q_stride, v_stride, out_stride, block_stride,
    table_stride, sinks_ptr, key_factor, value_factor, value_scale, norm_ptr, eps, GROUP: tl.constexpr,
    QUERIES: tl.constexpr, QUERIES_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MERGED_ROWS: tl.constexpr, MERGED_PARTS: tl.constexpr,
    WRITES: tl.constexpr, ROTATED: tl.constexpr, NORMED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr,
    HAS_SINKS: tl.constexpr, FLOAT8: tl.constexpr, SPLIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One part of one row and KV head."""
    if PDL:
        wait_for_the_kernel_before()
    head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    part = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    first_token = tl.load(query_start_ptr + row)
    num_queries = (tl.load(query_start_ptr + row + 1) - first_token).to(tl.int32)
    if (num_queries == 0) | (num_queries > QUERIES):
        return
    kv_len = tl.load(kv_lens_ptr + row).to(tl.int32)
    history = kv_len - num_queries
    low = 0
    if HAS_WINDOW:
        low = tl.maximum(history - window + 1, 0)
    first_tile = low // BLOCK_N
    num_tiles = tl.cdiv(kv_len, BLOCK_N) - first_tile
    tiles_of_part = tl.maximum(tl.cdiv(num_tiles, num_splits), 1)
    num_parts = tl.maximum(tl.cdiv(num_tiles, tiles_of_part), 1)  # padding without keys has one, whose answer is 0
    if part >= num_parts:
        return
    begin = (first_tile + part * tiles_of_part) * BLOCK_N
    end = tl.minimum(begin + tiles_of_part * BLOCK_N, kv_len)

    if WRITES:
        _write_new(
            q_ptr, v_ptr, cos_ptr, sin_ptr, kv_ptr, slots_ptr, first_token, num_queries, history, begin, end,
            q_stride, v_stride, block_stride, key_factor, value_factor, norm_ptr, eps, GROUP, QUERIES_PAD, D, D_PAD,
            BLOCK_TOKENS, ROTATED, NORMED, FLOAT8,
        )  # fmt: skip
        tl.debug_barrier()  # the loop below reads them through other threads

    line = tl.arange(0, BLOCK_M)
    query = line // GROUP
    valid = query < num_queries
    token = first_token + query
    q_head = head * GROUP + line % GROUP
    q = rotated_rows(
        q_ptr, token * q_stride + q_head * D, cos_ptr, sin_ptr, token * D, norm_ptr, q_head * D, eps, valid, ROTATED,
        NORMED, D, D_PAD,
    )  # fmt: skip
    acc = tl.zeros([BLOCK_M, D_PAD], dtype=tl.float32)
    total, top = beginning(sinks_ptr, q_head, valid, HAS_SINKS, BLOCK_M)
    if HAS_SINKS and SPLIT:  # of the other parts no line has seen anything
        total = tl.where(part == 0, total, 0.0)
        top = tl.where(part == 0, top, float("-inf"))
    keys_ptr = kv_ptr + head * (BLOCK_TOKENS * D)
    values_ptr = keys_ptr + kv_heads * (BLOCK_TOKENS * D)
    for start in tl.range(begin, end, BLOCK_N):
        acc, total, top = attend_tile(
            q, acc, total, top, keys_ptr, values_ptr, table_ptr + row * table_stride, start, low, end,
            history + query, scale, soft_cap, window, block_stride, True, HAS_WINDOW, HAS_CAP, D, D_PAD,
            BLOCK_TOKENS, BLOCK_N, FLOAT8,
        )  # fmt: skip
    total = tl.where(total == 0.0, 1.0, total)  # of a query that sees no key of this part: top is -inf, acc 0
    acc = acc / total[:, None]
    if FLOAT8 != "":
        acc *= value_scale

    column = tl.arange(0, D_PAD)
    inside = valid[:, None] & (column < D)[None, :]
    target = out_ptr + (token * out_stride + q_head * D)[:, None] + column[None, :]
    if SPLIT:
        pair = row * kv_heads + head
        if num_parts == 1:
            tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=inside)
        else:
            line_of_part = (pair * num_splits + part) * (QUERIES * GROUP) + line
            tl.store(logs_ptr + line_of_part, top + tl.log2(total), mask=valid)
            tl.store(parts_ptr + line_of_part[:, None] * D + column[None, :], acc, mask=inside)
            tl.debug_barrier()  # all threads have stored before one of them says so
            arrived = tl.atomic_add(counters_ptr + pair, 1, sem="acq_rel", scope="gpu")
            if arrived == num_parts - 1:
                tl.store(counters_ptr + pair, 0)
                _merge(
                    parts_ptr + pair * num_splits * (QUERIES * GROUP * D),
                    logs_ptr + pair * num_splits * (QUERIES * GROUP),
                    out_ptr + first_token * out_stride + head * (GROUP * D), out_stride, num_parts, num_queries,
                    GROUP, QUERIES, D, D_PAD, MERGED_ROWS, MERGED_PARTS,
                )  # fmt: skip
    else:
        tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _write_new(
    q_ptr, v_ptr, cos_ptr, sin_ptr, kv_ptr, slots_ptr, first_token, num_queries, history, begin, end,
    q_stride, v_stride, block_stride, key_factor, value_factor, norm_ptr, eps, GROUP: tl.constexpr,
    QUERIES_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK_TOKENS: tl.constexpr, ROTATED: tl.constexpr,
    NORMED: tl.constexpr, FLOAT8: tl.constexpr,
):  # fmt: skip
    """Normalize and rotate the row's new keys at [begin, end), then write them and their values to their slots."""
    head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    query = tl.arange(0, QUERIES_PAD)
    mine = (query < num_queries) & (history + query >= begin) & (history + query < end)
    token = first_token + query
    key_head = kv_heads * GROUP + head
    key = rotated_rows(
        q_ptr, token * q_stride + key_head * D, cos_ptr, sin_ptr, token * D, norm_ptr, query * 0 + key_head * D, eps,
        mine, ROTATED, NORMED, D, D_PAD,
    )  # fmt: skip
    value = plain_rows(v_ptr, token * v_stride + head * D, mine, D, D_PAD)
    slot = tl.load(slots_ptr + token, mask=mine, other=0)
    place = slot // BLOCK_TOKENS * block_stride + (head * BLOCK_TOKENS + slot % BLOCK_TOKENS) * D
    column = tl.arange(0, D_PAD)
    target = kv_ptr + place[:, None] + column[None, :]
    stored = mine[:, None] & (column < D)[None, :]
    tl.store(target, as_entries(key, key_factor, kv_ptr.dtype.element_ty, FLOAT8), mask=stored)
    target += kv_heads * BLOCK_TOKENS * D
    tl.store(target, as_entries(value, value_factor, kv_ptr.dtype.element_ty, FLOAT8), mask=stored)


@triton.jit
def _merge(
    parts_ptr,
    logs_ptr,
    out_ptr,
    out_stride,
    num_parts,
    num_queries,
    GROUP: tl.constexpr,
    QUERIES: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    MERGED_ROWS: tl.constexpr,
    MERGED_PARTS: tl.constexpr,
):
    """The mean of all parts, weighted by the sums of their exponentials, whose base-2 logarithms are ``logs``."""
    line = tl.arange(0, MERGED_ROWS)
    column = tl.arange(0, D_PAD)
    query = line // GROUP
    valid = query < num_queries
    acc = tl.zeros([MERGED_ROWS, D_PAD], dtype=tl.float32)
    total = tl.zeros([MERGED_ROWS], dtype=tl.float32)
    top = tl.full([MERGED_ROWS], float("-inf"), dtype=tl.float32)
    for first_part in range(0, num_parts, MERGED_PARTS):
        part = first_part + tl.arange(0, MERGED_PARTS)
        source = part[:, None] * (QUERIES * GROUP) + line[None, :]
        there = (part < num_parts)[:, None] & valid[None, :]
        # Past the first-level cache, which does not know what other processors wrote.
        logs = tl.load(logs_ptr + source, mask=there, other=float("-inf"), cache_modifier=".cg")
        inside = there[:, :, None] & (column < D)[None, None, :]
        means = tl.load(
            parts_ptr + source[:, :, None] * D + column[None, None, :], mask=inside, other=0.0, cache_modifier=".cg"
        )
        new_top = tl.maximum(top, tl.max(logs, 0))
        reference = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(logs - reference[None, :])
        kept = tl.exp2(top - reference)
        acc = acc * kept[:, None] + tl.sum(means * weights[:, :, None], 0)
        total = total * kept + tl.sum(weights, 0)
        top = new_top
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    target = out_ptr + (query * out_stride + line % GROUP * D)[:, None] + column[None, :]
    tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None] & (column < D)[None, :])


_POINTERS = {
    "q_ptr": "*bf16",
    "v_ptr": "*bf16",
    "cos_ptr": "*fp32",
    "sin_ptr": "*fp32",
    "out_ptr": "*bf16",
    "parts_ptr": "*fp32",
    "logs_ptr": "*fp32",
    "counters_ptr": "*i32",
    "query_start_ptr": "*i64",
    "kv_lens_ptr": "*i64",
    "table_ptr": "*i64",
    "slots_ptr": "*i64",
}

_SWITCHED = {
    "sinks_ptr": "*fp32",
    "key_factor": "fp32",
    "value_factor": "fp32",
    "value_scale": "fp32",
    "norm_ptr": "*fp32",
}

AOT_ROWS = (1, 8, 64)  # one for each tile, with 8 KV heads


def _case(target: Target, rows: int, float8: str, pool: str) -> AotCase:
    """Heads of 128 values on as many processors as an H200 has. With a cache in float8 sinks, norms and a window
    are there."""
    block_n, warps, stages = tile_of(rows * 8, 128, 2, target.processor_bytes)
    split = choose_num_splits(rows, 8, 132) > 1
    workspace = ("parts_ptr", "logs_ptr", "counters_ptr")
    absent = (*(() if float8 else _SWITCHED), *(() if split else workspace))
    signature = {
        **_POINTERS,
        "kv_ptr": pool,
        "scale": "fp32",
        "soft_cap": "fp32",
        "window": "i32",
        "num_splits": "i32",
        "q_stride": "i32:16",
        "v_stride": "i32:16",
        "out_stride": "i32:16",
        "block_stride": "i32:16",
        "table_stride": "i32",
        "eps": "fp32",
        **_SWITCHED,
    }
    return AotCase(
        kernel=_decode,
        signature={name: kind for name, kind in signature.items() if name not in absent},
        constants={
            **dict.fromkeys(absent),
            "GROUP": 4,
            "QUERIES": 1,
            "QUERIES_PAD": 1,
            "D": 128,
            "D_PAD": 128,
            "BLOCK_TOKENS": 16,
            "BLOCK_M": 16,
            "BLOCK_N": block_n,
            "MERGED_ROWS": 4,
            "MERGED_PARTS": 16,
            "WRITES": True,
            "ROTATED": True,
            "NORMED": float8 != "",
            "HAS_WINDOW": float8 != "",
            "HAS_CAP": False,
            "HAS_SINKS": float8 != "",
            "FLOAT8": float8,
            "SPLIT": split,
            "PDL": early_for(rows, target.capability),
        },
        num_warps=warps,
        num_stages=stages,
        targets=(target.name,),
    )


AOT: tuple[AotCase, ...] = tuple(
    _case(target, rows, float8, pool)
    for target in TARGETS.values()
    for float8, pool in aot_pools(target)
    for rows in (AOT_ROWS if target.capability != NONE and not float8 else AOT_ROWS[1:2])
)
