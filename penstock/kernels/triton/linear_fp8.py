"""Multiplications with weights of float8 e4m3 values that have float32 scales, one for every row or for every group of
its columns.

``linear_fp8`` reads the weight as it is and multiplies x in its own type: for few rows, which take as long as the
weight takes to be read. ``linear_fp8_dynamic`` brings x to float8 as well, with scales of its own rows and groups
(``quantize_fp8``), and the matrix units multiply both as they are. They sum at most 128 products with fewer bits than
float32 has; such partial sums are scaled and added in float32 (DeepSeek-V3, Liu et al. 2024, section 3.3).

Where the matrix units have no float8, and in the interpreter, values are widened first: the same products, summed in
float32 throughout. Knows no layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import RESERVED_BYTES, TARGETS, AotCase, Target
from penstock.kernels.triton.card import NONE, capability_of, device_sizes, multiplies_float8
from penstock.kernels.triton.float8 import LARGEST, bytes_of, has_float8, widened
from penstock.kernels.triton.layout import check_rows
from penstock.kernels.triton.linear import AOT_SHAPE, MAX_ROWS, DotTiling, aot_case, launch

LEAST = tl.constexpr(2.0**-100)  # taken for the largest of a group of zeros, so that its scale is a number
QUANTIZED_AT_ONCE = 2048  # values of one program


@dataclass(frozen=True, slots=True)
class ProductTiling:
    """A program computes ``block_r`` rows of ``block_n`` results, ``block_k`` columns at a time; ``stages`` such blocks
    are on their way from memory. ``group`` tiles of rows follow each other before the next tile of the weight."""

    block_r: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    group: int = 8


@triton.jit
def _quantize_kernel(
    x, codes, scales, groups, group_size, x_stride, codes_stride,
    BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """BLOCK_G groups of a row for every program, BLOCK_K columns of each at a time; scales [rows, groups]."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    in_block = tl.arange(0, BLOCK_K)
    columns = group[:, None] * group_size + in_block[None, :]
    largest = tl.zeros((BLOCK_G,), tl.float32)
    strange = tl.zeros((BLOCK_G,), tl.int32)
    for start in range(0, group_size, BLOCK_K):
        inside = (group < groups)[:, None] & (start + in_block < group_size)[None, :]
        values = tl.load(x + row * x_stride + columns + start, mask=inside, other=0.0).to(tl.float32)
        size = tl.abs(values)
        strange = tl.maximum(strange, tl.max((size < float("inf")).to(tl.int32) ^ 1, axis=1))  # a NaN is less than none
        largest = tl.maximum(largest, tl.max(size, axis=1))
    largest = tl.where(strange != 0, 1.0, tl.maximum(largest, LEAST))
    factor = tl.where(strange != 0, 0.0, tl.div_rn(LARGEST, largest))
    for start in range(0, group_size, BLOCK_K):
        inside = (group < groups)[:, None] & (start + in_block < group_size)[None, :]
        values = tl.load(x + row * x_stride + columns + start, mask=inside, other=0.0).to(tl.float32)
        values = tl.where((strange != 0)[:, None], 0.0, values * factor[:, None])
        values = tl.minimum(tl.maximum(values, -LARGEST), LARGEST)
        tl.store(codes + row * codes_stride + columns + start, bytes_of(values, HOW), mask=inside)
    scale = tl.where(strange != 0, float("nan"), tl.div_rn(largest, LARGEST))
    tl.store(scales + row * groups + group, scale, mask=group < groups)


@triton.jit(do_not_specialize=["rows"])
def _product_kernel(
    x, x_scales, weight, scales, bias, out,
    rows, outs, columns, x_stride, x_scale_stride, weight_stride, scale_stride, out_stride,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr,
    SCALE_GROUP: tl.constexpr, WIDEN: tl.constexpr, HAS_BIAS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x and weight are float8 values, or their bytes if WIDEN says how they become values of out's type. SCALE_GROUP
    columns of a row share a scale, all of them if it is 0."""
    program = tl.program_id(0)
    of_group = GROUP * tl.cdiv(outs, BLOCK_N)
    first = program // of_group * GROUP
    tiles = tl.minimum(tl.cdiv(rows, BLOCK_R) - first, GROUP)
    row = (first + program % of_group % tiles) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = program % of_group // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    of_x = tl.minimum(row, rows - 1).to(tl.int64)  # what places behind the last compute is not stored
    of_weight = tl.minimum(column, outs - 1).to(tl.int64)
    in_block = tl.arange(0, BLOCK_K)
    x_places = x + of_x[:, None] * x_stride + in_block[None, :]
    weight_places = weight + of_weight[None, :] * weight_stride + in_block[:, None]
    sums = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    for start in tl.range(0, columns, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            xs = tl.load(x_places + start)
            ws = tl.load(weight_places + start)
        else:
            inside = start + in_block < columns
            xs = tl.load(x_places + start, mask=inside[None, :], other=0.0)
            ws = tl.load(weight_places + start, mask=inside[:, None], other=0.0)
        if WIDEN != "":
            xs = widened(xs, out.dtype.element_ty, WIDEN)
            ws = widened(ws, out.dtype.element_ty, WIDEN)
        if SCALE_GROUP > 0:
            x_scale = tl.load(x_scales + of_x * x_scale_stride + start // SCALE_GROUP)
            scale = tl.load(scales + of_weight * scale_stride + start // SCALE_GROUP)
            sums += tl.dot(xs, ws, input_precision="ieee") * x_scale[:, None] * scale[None, :]
        elif WIDEN != "":
            sums = tl.dot(xs, ws, sums, input_precision="ieee")
        else:  # not by max_num_imprecise_acc, with which Triton 3.7 adds products on Hopper before they are there
            sums += tl.dot(xs, ws)
    if SCALE_GROUP == 0:
        sums *= tl.load(x_scales + of_x * x_scale_stride)[:, None]
        sums *= tl.load(scales + of_weight * scale_stride)[None, :]
    if HAS_BIAS:
        sums += tl.load(bias + of_weight).to(tl.float32)[None, :]
    places = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
    tl.store(places, sums.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < outs)[None, :])


def linear_fp8(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    *,
    widen: str = "",
    **choices: Any,
) -> torch.Tensor:
    """``x @ (codes * scales).T + bias``: x [rows, n], bytes uint8 [m, n], scales float32 [m, groups], bias [m] of x's
    type -> [rows, m] in it, summed in float32. ``out`` is where it goes, with contiguous columns.

    More than 128 rows read the weight several times. Bytes of NaN become 480: who has them gives them a scale that is
    NaN. ``widen`` ("cast", "bits" or "asm") and ``choices`` are for measurements: see ``linear.launch``.
    """
    nvidia = capability_of(x.device) != NONE
    widen = widen or ("asm" if nvidia and x.dtype == torch.bfloat16 else "bits")
    weight = codes.view(torch.float8_e4m3fn) if widen == "cast" else codes
    if x.shape[0] <= MAX_ROWS:
        return launch(x, weight, bias, out, scales=scales, widen=widen, **choices)
    if out is None:
        out = torch.empty((x.shape[0], codes.shape[0]), dtype=x.dtype, device=x.device)
    for start in range(0, x.shape[0], MAX_ROWS):
        some = slice(start, start + MAX_ROWS)
        launch(x[some], weight, bias, out[some], scales=scales, widen=widen, **choices)
    return out


def quantize_fp8(x: torch.Tensor, group: int = 0, *, how: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """See the reference. Columns of x are contiguous; ``how`` is for measurements: "cast" or "bits"."""
    check_rows(x)
    rows, columns = x.shape
    size = group or columns
    if columns % size:
        raise ValueError(f"{columns} columns are no whole number of groups of {size}")
    codes = torch.empty((rows, columns), dtype=torch.uint8, device=x.device)
    scales = torch.empty((rows, columns // size), dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return codes, scales
    block_k = min(triton.next_power_of_2(size), QUANTIZED_AT_ONCE)
    block_g = min(triton.next_power_of_2(columns // size), QUANTIZED_AT_ONCE // block_k)
    _quantize_kernel[(rows, triton.cdiv(columns // size, block_g))](
        x, codes, scales, columns // size, size, x.stride(0), codes.stride(0),
        BLOCK_G=block_g, BLOCK_K=block_k, HOW=how or ("cast" if has_float8(x.device) else "bits"), num_warps=4,
    )  # fmt: skip
    return codes, scales


def linear_fp8_dynamic(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    *,
    streamed_rows: int = 0,
    tiling: ProductTiling | DotTiling | None = None,
    widen: str = "",
) -> torch.Tensor:
    """``linear_fp8`` of x in float8, quantized in groups of as many columns as the weight's. Up to ``streamed_rows``
    rows, at most 128, are multiplied as ``linear_fp8`` does, whose kernel reads the weight evenly, if the matrix units
    have float8; others by ``product_fp8``.

    ``widen`` and ``tiling`` are for measurements; the latter's kind says which of the two it is."""
    groups = scales.shape[1]
    x_codes, x_scales = quantize_fp8(x, 0 if groups == 1 else x.shape[1] // groups)
    if out is None:
        out = torch.empty((x.shape[0], codes.shape[0]), dtype=x.dtype, device=x.device)
    if isinstance(tiling, DotTiling):
        return streamed_fp8(x_codes, x_scales, codes, scales, bias, out, tiling=tiling)
    if tiling is None and x.shape[0] <= streamed_rows and has_float8(x.device):
        return streamed_fp8(x_codes, x_scales, codes, scales, bias, out)
    return product_fp8(x_codes, x_scales, codes, scales, bias, out, tiling=tiling, widen=widen)


def streamed_fp8(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    *,
    tiling: DotTiling | None = None,
) -> torch.Tensor:
    """``product_fp8`` for up to 128 rows, on matrix units that have float8."""
    x, weight = x.view(torch.float8_e4m3fn), codes.view(torch.float8_e4m3fn)
    return launch(x, weight, bias, out, scales=scales, x_scales=x_scales, tiling=tiling)


def product_fp8(
    x: torch.Tensor,
    x_scales: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    *,
    tiling: ProductTiling | None = None,
    widen: str = "",
) -> torch.Tensor:
    """Both sides are bytes uint8 [rows, n] and [m, n] with float32 scales for as many groups of columns; bias [m] and
    out [rows, m] have one type."""
    (rows, columns), outs = x.shape, codes.shape[0]
    if codes.shape[1] != columns or x_scales.shape != (rows, scales.shape[1]) or scales.shape[0] != outs:
        raise ValueError(f"cannot multiply {tuple(x.shape)} with {tuple(codes.shape)}, scales {tuple(scales.shape)}")
    if out.shape != (rows, outs) or any(each.stride(1) != 1 for each in (x, codes, x_scales, scales, out)):
        raise ValueError(f"the result is [{rows}, {outs}], and columns are contiguous everywhere")
    if rows == 0:
        return out
    groups = scales.shape[1]
    tiling = tiling or product_tiling_of(rows, outs, device_sizes(x.device)[1])
    scale_group = 0 if groups == 1 else columns // groups
    if scale_group % tiling.block_k:
        raise ValueError(f"blocks of {tiling.block_k} columns do not fit scales of {scale_group}")
    widen = widen or ("" if has_float8(x.device) else "bits")
    kind = torch.uint8 if widen else torch.float8_e4m3fn
    programs = triton.cdiv(rows, tiling.block_r) * triton.cdiv(outs, tiling.block_n)
    _product_kernel[(programs,)](
        x.view(kind), x_scales, codes.view(kind), scales, out if bias is None else bias, out, rows, outs, columns,
        x.stride(0), x_scales.stride(0), codes.stride(0), scales.stride(0), out.stride(0),
        BLOCK_R=tiling.block_r, BLOCK_N=tiling.block_n, BLOCK_K=tiling.block_k, GROUP=tiling.group,
        EVEN_K=columns % tiling.block_k == 0, SCALE_GROUP=scale_group, WIDEN=widen, HAS_BIAS=bias is not None,
        STAGES=tiling.stages, num_warps=tiling.warps,
    )  # fmt: skip
    return out


def product_tiling_of(rows: int, outs: int, shared_bytes: int = 228 << 10) -> ProductTiling:
    """Many rows are bound by the matrix units, which want large tiles; few leave multiprocessors without one. With as
    many stages as a multiprocessor with so much shared memory has room for."""
    if rows <= 64:
        tiling = ProductTiling(64, 64, 128, 4, 5)
    elif triton.cdiv(rows, 128) * triton.cdiv(outs, 128) < 132:
        tiling = ProductTiling(64, 128, 128, 4, 4)
    else:
        tiling = ProductTiling(128, 128, 128, 8, 4)
    room = (shared_bytes - RESERVED_BYTES) // (tiling.block_k * (tiling.block_r + tiling.block_n))
    return replace(tiling, stages=max(2, min(tiling.stages, room)))


_SIZES = ("outs", "columns", "x_stride", "weight_stride", "out_stride")


def _quantize(target: Target) -> AotCase:
    pointers = {"x": "*bf16", "codes": "*u8", "scales": "*fp32"}
    sizes = {"groups": "i32:16", "group_size": "i32:16", "x_stride": "i32:16", "codes_stride": "i32:16"}
    constants = {"BLOCK_G": 16, "BLOCK_K": 128, "HOW": "cast" if multiplies_float8(target.capability) else "bits"}
    return AotCase(kernel=_quantize_kernel, signature=pointers | sizes, constants=constants, targets=(target.name,))


def _product(target: Target, rows: int, scale_group: int) -> AotCase:
    has_float8 = multiplies_float8(target.capability)
    tiling = product_tiling_of(rows, AOT_SHAPE[0], target.processor_bytes)
    kind = "*fp8e4nv" if has_float8 else "*u8"
    pointers = {"x": kind, "x_scales": "*fp32", "weight": kind, "scales": "*fp32", "bias": "*bf16", "out": "*bf16"}
    sizes = {"rows": "i32", "x_scale_stride": "i32", "scale_stride": "i32", **dict.fromkeys(_SIZES, "i32:16")}
    blocks = {"BLOCK_R": tiling.block_r, "BLOCK_N": tiling.block_n, "BLOCK_K": tiling.block_k, "GROUP": tiling.group}
    return AotCase(
        kernel=_product_kernel,
        signature=pointers | sizes,
        constants={
            **blocks,
            "EVEN_K": True,
            "SCALE_GROUP": scale_group,
            "WIDEN": "" if has_float8 else "bits",
            "HAS_BIAS": True,
            "STAGES": tiling.stages,
        },
        num_warps=tiling.warps,
        targets=(target.name,),
    )


def _few(target: Target) -> tuple[AotCase, ...]:
    """x as it is; and in float8 where it is multiplied so."""
    widen = "bits" if target.capability == NONE else "asm"
    dense = aot_case(target, 8, weight="*u8", scale_group=128, widen=widen)
    if not multiplies_float8(target.capability):
        return (dense,)
    return dense, aot_case(target, 8, x="*fp8e4nv", weight="*fp8e4nv", scale_group=128)


AOT: tuple[AotCase, ...] = tuple(
    case
    for target in TARGETS.values()
    for case in (
        *_few(target),
        _quantize(target),
        _product(target, 1024 if multiplies_float8(target.capability) else 64, 128),
    )
)
