"""Multiplications of few rows with a weight, which take as long as the weight takes to be read.

``linear_skinny`` cuts the weight in tiles and their columns in blocks, and deals all blocks of all tiles out evenly, in
order, to as many programs as the device runs at once (stream-K, Osama et al. 2023). So every multiprocessor reads the
same amount whatever the shape is. A tile whose blocks went to several programs is summed in their order by the one that
arrives last: one launch, and the same bits in every run. Which blocks are summed together depends on the shape and on
the tiling, never on the values or on the arrival.

Weights are dense, or float8 values with float32 scales (``linear_fp8``), which are widened to x's type on the way to
the matrix units, or multiplied as they are with an x in float8 that has scales as well.

Launches on one device must follow each other, as those of one stream do: they share counters. Knows no layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import RESERVED_BYTES, TARGETS, AotCase, Target
from penstock.kernels.triton.card import NONE, device_sizes
from penstock.kernels.triton.early import early_for, early_launch, launches_early
from penstock.kernels.triton.float8 import widened

MAX_ROWS = 128
MAX_TILES = 1 << 14  # of one weight: there is a counter for each
LEAST_UNITS = 4  # blocks of columns that a program takes at least: fewer are not worth the sum over programs


@dataclass(frozen=True, slots=True)
class DotTiling:
    """How the matrix units multiply: ``block_n`` rows of the weight by ``block_k`` columns at a time, with ``stages``
    such blocks on the way from memory, and ``per_sm`` programs on every multiprocessor."""

    block_n: int
    block_k: int
    per_sm: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class VectorTiling:
    """How the vector units multiply one row of x: a program takes ``block_n`` rows of the weight and all columns,
    ``block_k`` at a time."""

    block_n: int
    block_k: int
    warps: int


# By the rows of x that the accumulator has room for.
DOT_TILINGS: Mapping[int, DotTiling] = {
    16: DotTiling(64, 128, 2, 4, 5),
    32: DotTiling(128, 64, 2, 4, 4),
    64: DotTiling(128, 64, 2, 4, 3),
    128: DotTiling(128, 64, 1, 8, 4),
}
# Of float8 weights, which take half the room. A block is no longer than the columns that share a scale.
FLOAT8_TILINGS: Mapping[int, DotTiling] = {
    16: DotTiling(64, 128, 2, 4, 6),
    32: DotTiling(128, 128, 2, 4, 4),
    64: DotTiling(128, 128, 2, 4, 3),
    128: DotTiling(128, 128, 1, 8, 4),
}


@triton.jit
def _rows_of_tile(tile, outs, BLOCK_N: tl.constexpr):
    """Rows of the weight in a tile [BLOCK_N]. Places behind the last row repeat it: what they compute is not stored."""
    return tl.minimum(tile * BLOCK_N + tl.arange(0, BLOCK_N), outs - 1)


@triton.jit
def _store_tile(
    sums, tile, scales, x_scales, bias, out, rows, outs, out_stride,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, SCALE_GROUP: tl.constexpr, X_SCALED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """sums float32 [BLOCK_N, BLOCK_R] -> the tile's columns of out, after scales of rows and bias."""
    row = tl.arange(0, BLOCK_R)
    if SCALE_GROUP == 0:
        sums *= tl.load(scales + _rows_of_tile(tile, outs, BLOCK_N))[:, None]
        if X_SCALED:
            sums *= tl.load(x_scales + row, mask=row < rows, other=0.0)[None, :]
    if HAS_BIAS:
        added = tl.load(bias + _rows_of_tile(tile, outs, BLOCK_N))
        sums += added.to(tl.float32)[:, None]
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    places = out + row.to(tl.int64)[None, :] * out_stride + column[:, None]
    tl.store(places, sums.to(out.dtype.element_ty), mask=(column < outs)[:, None] & (row < rows)[None, :])


@triton.jit
def _ask_for_lines(
    weight, unit, outs, k_blocks, columns, weight_stride, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Brings a block into the second-level cache. Nobody waits for it."""
    line: tl.constexpr = 64 if BLOCK_K >= 64 else BLOCK_K  # elements of 16 bits in 128 bytes
    tile = unit // k_blocks
    of_tile = _rows_of_tile(tile, outs, BLOCK_N).to(tl.int64)
    column = (unit - tile * k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K // line) * line
    places = weight + of_tile[:, None] * weight_stride + tl.minimum(column, columns - 1)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [places], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _in_part(BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr):
    return tl.arange(0, BLOCK_N)[:, None] * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]


@triton.jit
def _sum_of_parts(parts, first_owner, last_owner, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr):
    """The sum of one tile's parts in the order of their columns. Read around the first-level cache, which may hold what
    stood there before, and some at once, since each takes as long as memory takes to answer."""
    AT_ONCE: tl.constexpr = 4 if BLOCK_N * BLOCK_R <= 2048 else 2
    in_part = _in_part(BLOCK_N, BLOCK_R)
    total = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for chunk in tl.range(first_owner, last_owner + 1, AT_ONCE, num_stages=1):
        for i in tl.static_range(AT_ONCE):
            owner = chunk + i
            part = 2 * owner + (owner == first_owner).to(tl.int32)
            places = parts + part * (BLOCK_N * BLOCK_R) + in_part
            total += tl.load(places, mask=owner <= last_owner, other=0.0, cache_modifier=".cg")
    return total


@triton.jit(do_not_specialize=["rows", "units"])
def _dot_kernel(
    x, weight, scales, x_scales, bias, out, parts, arrivals,
    rows, outs, columns, units, x_stride, weight_stride, scale_stride, out_stride,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    SCALE_GROUP: tl.constexpr, X_SCALED: tl.constexpr, WIDEN: tl.constexpr, HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``units`` blocks of [BLOCK_N, BLOCK_K] for every program, counted through all tiles one after the other.

    scales float32 [outs, groups]: SCALE_GROUP columns of a row share one, all of them if it is 0; -1: there are none.
    x_scales float32 [rows, groups] are those of an x in float8, if X_SCALED. WIDEN says how the weight becomes values
    of x's type, "" if it is.

    parts float32 [programs, 2, BLOCK_N, BLOCK_R] holds sums over a part of a tile's columns, of which a program has two
    at most: place 0 of a tile that another program began, place 1 of one that this program began and another one ended.
    arrivals int32 [tiles] is zero before and after. What needs barriers stands behind the loop, which is pipelined only
    when it has none.
    """
    program = tl.program_id(0)
    k_blocks = tl.cdiv(columns, BLOCK_K)
    first = program * units
    last = tl.minimum(first + units, tl.cdiv(outs, BLOCK_N) * k_blocks)
    row = tl.arange(0, BLOCK_R)
    in_block = tl.arange(0, BLOCK_K)
    x_places = x + row.to(tl.int64)[None, :] * x_stride + in_block[:, None]
    if PDL:  # weights are there before the kernel in front has ended; x is not, and it may read what is written here
        tl.extra.cuda.gdc_launch_dependents()
        _ask_for_lines(weight, first, outs, k_blocks, columns, weight_stride, BLOCK_N, BLOCK_K)
        tl.extra.cuda.gdc_wait()
    in_part = _in_part(BLOCK_N, BLOCK_R)
    sums = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for unit in tl.range(first, last, num_stages=STAGES):
        tile = unit // k_blocks
        k_block = unit - tile * k_blocks
        start = k_block * BLOCK_K
        of_tile = _rows_of_tile(tile, outs, BLOCK_N).to(tl.int64)
        w_places = weight + of_tile[:, None] * weight_stride + (start + in_block)[None, :]
        if EVEN_K:
            w = tl.load(w_places)
            xs = tl.load(x_places + start, mask=(row < rows)[None, :], other=0.0)
        else:
            w = tl.load(w_places, mask=(start + in_block < columns)[None, :], other=0.0)
            inside = (row < rows)[None, :] & (start + in_block < columns)[:, None]
            xs = tl.load(x_places + start, mask=inside, other=0.0)
        if k_block == 0:  # in front of the product: behind it, Hopper's code would not wait for the product first
            sums = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
        if WIDEN != "":
            w = widened(w, xs.dtype, WIDEN)
        if SCALE_GROUP > 0:
            scaled_rows = _rows_of_tile(tile, outs, BLOCK_N) * scale_stride
            scale = tl.load(scales + scaled_rows + start // SCALE_GROUP)
            product = tl.dot(w, xs, input_precision="ieee") * scale[:, None]
            if X_SCALED:
                x_scale_places = x_scales + row * (columns // SCALE_GROUP) + start // SCALE_GROUP
                product *= tl.load(x_scale_places, mask=row < rows, other=0.0)[None, :]
            sums += product
        elif X_SCALED:  # products of float8 are summed with fewer bits than float32 has
            sums += tl.dot(w, xs)
        else:
            sums = tl.dot(w, xs, sums, input_precision="ieee")
        if (k_block == k_blocks - 1) | (unit == last - 1):
            begun_here = tile * k_blocks >= first
            if begun_here & ((tile + 1) * k_blocks <= last):
                _store_tile(
                    sums, tile, scales, x_scales, bias, out, rows, outs, out_stride,
                    BLOCK_N, BLOCK_R, SCALE_GROUP, X_SCALED, HAS_BIAS,
                )  # fmt: skip
            else:
                part = 2 * program + begun_here.to(tl.int32)
                tl.store(parts + part * (BLOCK_N * BLOCK_R) + in_part, sums)
    tl.debug_barrier()  # all threads have stored their parts before one of them says so
    for place in tl.static_range(2):
        tile = (first if place == 0 else last - 1) // k_blocks
        begun_here = tile * k_blocks >= first
        whole = begun_here & ((tile + 1) * k_blocks <= last)
        if (begun_here == (place == 1)) & (whole == 0):
            first_owner = tile * k_blocks // units
            last_owner = ((tile + 1) * k_blocks - 1) // units
            arrived = tl.atomic_add(arrivals + tile, 1, sem="acq_rel")
            if arrived == last_owner - first_owner:
                tl.debug_barrier()
                total = _sum_of_parts(parts, first_owner, last_owner, BLOCK_N, BLOCK_R)
                _store_tile(
                    total, tile, scales, x_scales, bias, out, rows, outs, out_stride,
                    BLOCK_N, BLOCK_R, SCALE_GROUP, X_SCALED, HAS_BIAS,
                )  # fmt: skip
                tl.store(arrivals + tile, 0)


@triton.jit
def _vector_kernel(
    x, weight, bias, out, outs, columns, weight_stride, out_stride,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """One tile for every program, of one row of x."""
    tile = tl.program_id(0)
    in_block = tl.arange(0, BLOCK_K)
    of_tile = _rows_of_tile(tile, outs, BLOCK_N).to(tl.int64)
    w_places = weight + of_tile[:, None] * weight_stride + in_block[None, :]
    products = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, columns, BLOCK_K):
        if EVEN_K:
            w = tl.load(w_places + start).to(tl.float32)
            products += w * tl.load(x + start + in_block).to(tl.float32)[None, :]
        else:
            inside = start + in_block < columns
            w = tl.load(w_places + start, mask=inside[None, :], other=0.0).to(tl.float32)
            products += w * tl.load(x + start + in_block, mask=inside, other=0.0).to(tl.float32)[None, :]
    sums = tl.sum(products, axis=1)[:, None]
    _store_tile(sums, tile, x, x, bias, out, 1, outs, out_stride, BLOCK_N, 1, -1, False, HAS_BIAS)


def linear_skinny(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    **choices: Any,
) -> torch.Tensor:
    """``x @ weight.T + bias`` for 1 to 128 rows: x [rows, n], weight [m, n], bias [m], one 16-bit type (or float32 in
    the interpreter) -> [rows, m] in that type, summed in float32. ``out`` is where it goes, with contiguous columns.

    ``choices`` are for measurements: see ``launch``.
    """
    return launch(x, weight, bias, out, **choices)


def linear_vector(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """``linear_skinny`` of one row on the vector units."""
    return launch(x, weight, bias, out, tiling=vector_tiling_of(*weight.shape))


def tiling_of(rows: int, columns: int, shared_bytes: int = 228 << 10, weight_bytes: int = 2) -> DotTiling:
    """What a multiplication is launched with on a multiprocessor with so much shared memory, by the size of a weight's
    value. Blocks of columns that leave no rest need no masks."""
    room = _room(rows)
    tiling = (FLOAT8_TILINGS if weight_bytes == 1 else DOT_TILINGS)[room]
    fitting = [size for size in (128, 64, 32) if size <= tiling.block_k and columns % size == 0]
    block_k = fitting[0] if fitting else tiling.block_k
    own = shared_bytes // tiling.per_sm - RESERVED_BYTES - 4 * tiling.block_n * room
    stages = max(2, min(tiling.stages, own // (block_k * (weight_bytes * tiling.block_n + 2 * room))))
    return replace(tiling, block_k=block_k, stages=stages)


def vector_tiling_of(outs: int, columns: int) -> VectorTiling:
    """Long rows, or few of them, are spread over many programs (H200, Llama 3.1 8B: 10.6 us for 4096 x 4096, 13.6 for
    6144 x 4096, 54.5 for 28672 x 4096, 29.4 for 4096 x 14336, 232 for 128256 x 4096)."""
    if outs <= 4096:
        return VectorTiling(2, 2048, 4)
    return VectorTiling(4, 1024, 4) if outs <= 16384 else VectorTiling(16, 256, 4)


@cache
def arrivals_on(device: torch.device) -> torch.Tensor:
    """The counters of a device, int32 zeros [MAX_TILES]. First asked for before anything is captured in a graph."""
    return torch.zeros(MAX_TILES, dtype=torch.int32, device=device)


def launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor | None,
    *,
    scales: torch.Tensor | None = None,
    x_scales: torch.Tensor | None = None,
    widen: str = "",
    tiling: DotTiling | VectorTiling | None = None,
    programs: int | None = None,
    pdl: bool | None = None,
) -> torch.Tensor:
    """``scales`` float32 [m, groups] are those of a weight of float8 values or of their bytes, which is widened by
    ``widen`` (see ``widened``), unless x is float8 too and has ``x_scales`` [rows, groups]: then ``out`` is given.

    ``programs`` share the blocks, at most (default: those that run at once). ``pdl``: the kernel starts before the one
    in front has ended (where devices can) and asks for its first block of weights until then."""
    rows, columns = x.shape
    outs = weight.shape[0]
    if not 0 <= rows <= MAX_ROWS or weight.shape[1] != columns:
        raise ValueError(f"cannot multiply {tuple(x.shape)} with {tuple(weight.shape)} in at most {MAX_ROWS} rows")
    kind = x.dtype if x_scales is None or out is None else out.dtype
    alike = (widen or weight.dtype == x.dtype) and (bias is None or bias.dtype == kind)
    if x.stride(1) != 1 or weight.stride(1) != 1 or not alike:
        raise ValueError("rows must be contiguous and of one type")
    scale_group = -1 if scales is None else _scale_group(scales, x_scales, rows, outs, columns)
    if out is None:
        out = torch.empty((rows, outs), dtype=kind, device=x.device)
    elif out.shape != (rows, outs) or out.stride(1) != 1 or out.dtype != kind:
        raise ValueError(f"the result is [{rows}, {outs}] {kind} with contiguous columns, not {tuple(out.shape)}")
    if rows == 0:
        return out
    num_sms, shared_bytes = device_sizes(x.device)
    tiling = tiling or tiling_of(rows, columns, shared_bytes, weight.element_size())
    fixed: dict[str, Any] = {
        "BLOCK_N": tiling.block_n,
        "BLOCK_K": tiling.block_k,
        "EVEN_K": columns % tiling.block_k == 0,
        "HAS_BIAS": bias is not None,
        "num_warps": tiling.warps,
    }
    tiles = triton.cdiv(outs, tiling.block_n)
    bias = x if bias is None else bias
    if isinstance(tiling, VectorTiling):
        if rows > 1 or scales is not None:
            raise ValueError(f"the vector units take one row and no scales, not {rows} rows")
        _vector_kernel[(tiles,)](x, weight, bias, out, outs, columns, weight.stride(0), out.stride(0), **fixed)
        return out
    if scale_group > 0 and scale_group % tiling.block_k:
        raise ValueError(f"blocks of {tiling.block_k} columns do not fit scales of {scale_group}")
    if tiles > MAX_TILES:
        raise ValueError(f"{outs} rows are too many")
    k_blocks = triton.cdiv(columns, tiling.block_k)
    if programs is None:
        most = num_sms * tiling.per_sm
        units = max(triton.cdiv(tiles * k_blocks, most), min(LEAST_UNITS, k_blocks))
    else:
        units = triton.cdiv(tiles * k_blocks, programs)
    programs = triton.cdiv(tiles * k_blocks, units)
    room = _room(rows)
    pdl = launches_early(x) if pdl is None else pdl
    arrivals = arrivals_on(x.device)
    splits = units % k_blocks != 0
    parts = torch.empty(programs * 2 * tiling.block_n * room if splits else 1, dtype=torch.float32, device=x.device)
    scales = x if scales is None else scales
    _dot_kernel[(programs,)](
        x, weight, scales, x if x_scales is None else x_scales, bias, out, parts, arrivals,
        rows, outs, columns, units,
        x.stride(0), weight.stride(0), scales.stride(0), out.stride(0),
        BLOCK_R=room, SCALE_GROUP=scale_group, X_SCALED=x_scales is not None, WIDEN=widen,
        PDL=pdl, STAGES=tiling.stages, **fixed, **early_launch(pdl),
    )  # fmt: skip
    return out


def _scale_group(scales: torch.Tensor, x_scales: torch.Tensor | None, rows: int, outs: int, columns: int) -> int:
    """Columns that share a scale, 0 for all of them."""
    groups = scales.shape[1]
    if x_scales is not None and (x_scales.shape != (rows, groups) or not x_scales.is_contiguous()):
        raise ValueError(f"scales of x are contiguous, [{rows}, {groups}], not {tuple(x_scales.shape)}")
    if scales.shape[0] != outs or scales.stride(1) != 1 or scales.dtype != torch.float32 or columns % groups:
        raise ValueError(f"{tuple(scales.shape)} {scales.dtype} are no scales of {outs} rows of {columns}")
    return 0 if groups == 1 else columns // groups


def _room(rows: int) -> int:
    """Rows of the accumulator."""
    return max(16, 1 << (rows - 1).bit_length())


_POINTERS = dict.fromkeys(("x", "weight", "bias", "out"), "*bf16")
_SIZES = dict.fromkeys(("outs", "columns", "weight_stride", "out_stride"), "i32:16")  # multiples of 16
_FIXED = {"EVEN_K": True, "HAS_BIAS": True}
AOT_SHAPE = (4096, 4096)  # of the weight


def aot_case(
    target: Target,
    rows: int,
    *,
    x: str = "*bf16",
    weight: str = "*bf16",
    scale_group: int = -1,
    widen: str = "",
) -> AotCase:
    """``launch`` on matrix units, with x and weight of these types."""
    tiling = tiling_of(rows, AOT_SHAPE[1], target.processor_bytes, 2 if weight == "*bf16" else 1)
    return AotCase(
        kernel=_dot_kernel,
        signature={
            **_POINTERS,
            "x": x,
            "weight": weight,
            "scales": "*bf16" if scale_group < 0 else "*fp32",
            "x_scales": "*bf16" if x == "*bf16" else "*fp32",
            "parts": "*fp32",
            "arrivals": "*i32",
            "rows": "i32",
            "units": "i32",
            "x_stride": "i32:16",
            "scale_stride": "i32",
            **_SIZES,
        },
        constants={
            **_FIXED,
            "BLOCK_R": _room(rows),
            "BLOCK_N": tiling.block_n,
            "BLOCK_K": tiling.block_k,
            "SCALE_GROUP": scale_group,
            "X_SCALED": x != "*bf16",
            "WIDEN": widen,
            "PDL": early_for(rows, target.capability),
            "STAGES": tiling.stages,
        },
        num_warps=tiling.warps,
        targets=(target.name,),
    )


_VECTOR = vector_tiling_of(*AOT_SHAPE)

AOT: tuple[AotCase, ...] = (
    *(
        aot_case(target, rows)
        for target in TARGETS.values()
        for rows in ((8, 32) if target.capability != NONE else (8,))
    ),
    AotCase(
        kernel=_vector_kernel,
        signature={**_POINTERS, **_SIZES},
        constants={**_FIXED, "BLOCK_N": _VECTOR.block_n, "BLOCK_K": _VECTOR.block_k},
        num_warps=_VECTOR.warps,
    ),
)
