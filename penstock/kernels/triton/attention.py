"""What the attention kernels share: the pool of keys and values, rotation with the write to it, one tile of an online
softmax.

Knows no row of a step. The pool of one layer is [num_blocks, 2, kv_heads, block_tokens, head_dim], keys before values,
so that the tokens of a block and KV head lie together; inside a block it is contiguous. A pool of float8 e4m3 has one
scale for its keys and one for its values: an entry stands for its value times the scale. Kernels see its bytes.

A sink is the score of a key that every query of a head sees and whose value is zero: the online softmax begins with it
instead of with nothing.

Heads of queries and keys may be normalized before they are rotated, with the arithmetic and the rounding of
``rms_norm``.

``D`` is the head's size and ``D_PAD`` the power of two that a tile is wide; columns behind D are never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import TARGETS, AotCase, Target
from penstock.kernels.triton.card import Capability, capability_of, multiplies_float8
from penstock.kernels.triton.float8 import as_entries, entries_as

LOG2_E = 1.4426950408889634  # exponentials are powers of two
MIN_TILE = 16  # tl.dot multiplies nothing smaller
# (tokens up to, heads of one program): few tokens are spread over the card, many share the reads of their tables.
WRITTEN_HEADS = ((64, 8), (1 << 62, 16))


@dataclass(frozen=True, slots=True)
class PagedRows:
    """One step's rows, as attention.contract.GroupStep has them; all int64 on the device, read when a kernel runs."""

    query_start: torch.Tensor  # [rows + 1]
    kv_lens: torch.Tensor  # [rows]
    block_table: torch.Tensor  # [rows, max blocks], any row stride
    slots: torch.Tensor  # [tokens]

    @property
    def num_rows(self) -> int:
        return self.kv_lens.shape[0]


@dataclass(frozen=True, slots=True)
class Scoring:
    """What becomes of a product of a query and a key: times ``scale`` (positive), bent by ``soft_cap``, hidden by
    ``window``. ``sinks`` float32 [heads]: scores, neither scaled nor bent, that each head's sum of exponentials has
    besides."""

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    sinks: torch.Tensor | None = None

    def arguments(self, key_scale: float = 1.0) -> tuple[float, float, int]:
        """``scale``, ``soft_cap`` and ``window`` as ``attend_tile`` takes them, for keys that stand for themselves
        times ``key_scale``."""
        scale = self.scale * key_scale
        if scale <= 0:
            raise ValueError(f"scores are compared before they are scaled: needs a positive scale, found {scale}")
        if self.soft_cap is not None:
            return scale / self.soft_cap, self.soft_cap * LOG2_E, self.window or 0
        return scale * LOG2_E, 0.0, self.window or 0

    def check_sinks(self, heads: int) -> None:
        """Raises ValueError unless there is a sink for each head, or none at all."""
        x = self.sinks
        if x is not None and (x.dtype is not torch.float32 or x.shape != (heads,) or not x.is_contiguous()):
            raise ValueError(f"sinks are not contiguous float32 [{heads}]: {x.dtype} {tuple(x.shape)}")


HeadNorms = tuple[torch.Tensor, float]
"""RMS norms of queries and keys: weights float32 [heads + kv_heads, d], contiguous, and epsilon."""


def padded_head_dim(head_dim: int) -> int:
    """Columns of a tile."""
    return max(MIN_TILE, int(triton.next_power_of_2(head_dim)))


def check_pool(kv: torch.Tensor, kv_heads: int, head_dim: int) -> int:
    """The number of tokens of a block. Raises ValueError when ``kv`` is no pool of such heads."""
    if kv.dim() != 5 or kv.shape[1:3] != (2, kv_heads) or kv.shape[4] != head_dim or not _packed(kv):
        raise ValueError(f"not [blocks, 2, {kv_heads}, block_tokens, {head_dim}] with contiguous blocks: {kv.shape}")
    block_tokens = kv.shape[3]
    if block_tokens != triton.next_power_of_2(block_tokens):
        raise ValueError(f"a block of {block_tokens} tokens is no power of two")
    return block_tokens


def check_heads(*tensors: torch.Tensor) -> None:
    """Raises ValueError unless the heads of every token lie together; tokens may lie apart."""
    for x in tensors:
        if x.dim() != 3 or x.stride(2) != 1 or x.stride(1) != x.shape[2]:
            raise ValueError(f"heads are not contiguous: shape {tuple(x.shape)}, strides {x.stride()}")


def check_tables(tables: tuple[torch.Tensor, torch.Tensor] | None, tokens: int, head_dim: int) -> None:
    """Raises ValueError unless cosines and sines are float32 [tokens, 1, head_dim], contiguous."""
    for table in tables or ():
        if table.dtype is not torch.float32 or not table.is_contiguous() or table.numel() != tokens * head_dim:
            raise ValueError(f"not a contiguous float32 table of {tokens} x {head_dim}: {table.shape} {table.dtype}")


def check_norms(norms: HeadNorms | None, qk: torch.Tensor) -> tuple[torch.Tensor | None, float]:
    """Weights and epsilon as kernels take them. Raises ValueError unless the weights are those of qk's heads."""
    if norms is None:
        return None, 0.0
    weight, eps = norms
    if weight.dtype is not torch.float32 or weight.shape != qk.shape[1:] or not weight.is_contiguous():
        raise ValueError(
            f"norms are not contiguous float32 {tuple(qk.shape[1:])}: {weight.dtype} {tuple(weight.shape)}"
        )
    return weight, eps


def float8_way(kv: torch.Tensor) -> str:
    """How kernels read and write the pool, as ``float8.entries_as`` has it."""
    if kv.dtype is not torch.float8_e4m3fn:
        return ""
    return _way(capability_of(kv.device))


def _way(capability: Capability) -> str:
    return "cast" if multiplies_float8(capability) else "bits"


def pool_elements(kv: torch.Tensor) -> torch.Tensor:
    """The pool as kernels see it."""
    return kv.view(torch.uint8) if kv.dtype is torch.float8_e4m3fn else kv


def write_factors(kv: torch.Tensor, kv_scales: tuple[float, float]) -> tuple[float | None, float | None]:
    """What keys and values are multiplied with before they become float8; None in other pools, which have no scales.

    Raises ValueError for scales that such a pool does not have, or that are not positive.
    """
    if kv.dtype is torch.float8_e4m3fn:
        if min(kv_scales) <= 0:
            raise ValueError(f"scales of keys and values are positive, found {kv_scales}")
        return 1.0 / kv_scales[0], 1.0 / kv_scales[1]
    if kv_scales != (1.0, 1.0):
        raise ValueError(f"a pool of {kv.dtype} has no scales, found {kv_scales}")
    return None, None


def _packed(kv: torch.Tensor) -> bool:
    wanted = 1
    for size, stride in zip(kv.shape[:0:-1], kv.stride()[:0:-1], strict=True):
        if size != 1 and stride != wanted:
            return False
        wanted *= size
    return True


def rotate_and_write(
    qk: torch.Tensor,
    v: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    kv: torch.Tensor,
    slots: torch.Tensor,
    *,
    norms: HeadNorms | None = None,
    kv_scales: tuple[float, float] = (1.0, 1.0),
    block_heads: int | None = None,
    num_warps: int = 4,
) -> torch.Tensor:
    """Normalize where there are norms and rotate queries and keys (Su et al. 2021, half-split), then write keys and
    values to their slots.

    qk [tokens, heads + kv_heads, d], queries first; v [tokens, kv_heads, d], tokens of both at any stride; tables
    float32 [tokens, 1, d] as ``rotary`` wants them, None leaves qk as it is; kv [blocks, 2, kv_heads, block_tokens, d],
    any block stride, changed in place; slots int64 [tokens]; kv_scales: see the module's docstring. Returns the queries
    [tokens, heads, d], contiguous.
    """
    tokens, kv_heads, head_dim = v.shape
    heads = qk.shape[1] - kv_heads
    block_tokens = check_pool(kv, kv_heads, head_dim)
    check_heads(qk, v)
    check_tables(tables, tokens, head_dim)
    weight, eps = check_norms(norms, qk)
    out = torch.empty((tokens, heads, head_dim), dtype=qk.dtype, device=qk.device)
    if tokens == 0:
        return out
    block_heads = block_heads or next(size for limit, size in WRITTEN_HEADS if tokens <= limit)
    cos, sin = tables or (None, None)
    _rotate_and_write[(tokens, triton.cdiv(heads + 2 * kv_heads, block_heads))](
        qk, v, cos, sin, pool_elements(kv), slots, out, qk.stride(0), v.stride(0), kv.stride(0),
        *write_factors(kv, kv_scales), weight, eps,
        HEADS=heads, KV_HEADS=kv_heads, HALF=head_dim // 2, HALF_PAD=triton.next_power_of_2(head_dim // 2),
        BLOCK_TOKENS=block_tokens, BLOCK_HEADS=block_heads, ROTATED=tables is not None, NORMED=norms is not None,
        FLOAT8=float8_way(kv), num_warps=num_warps,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def _rotate_and_write(
    qk_ptr, v_ptr, cos_ptr, sin_ptr, kv_ptr, slots_ptr, out_ptr, qk_stride, v_stride, block_stride,
    key_factor, value_factor, norm_ptr, eps, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    HALF_PAD: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_HEADS: tl.constexpr, ROTATED: tl.constexpr,
    NORMED: tl.constexpr, FLOAT8: tl.constexpr,
):  # fmt: skip
    """One token's heads [BLOCK_HEADS * program, ...): queries, then keys, then values."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    columns = tl.arange(0, HALF_PAD)
    inside = (columns < HALF)[None, :]
    is_query = (head < HEADS)[:, None] & inside
    is_turned = (head < HEADS + KV_HEADS)[:, None] & inside
    is_value = ((head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS))[:, None] & inside
    is_stored = ((head >= HEADS) & (head < HEADS + 2 * KV_HEADS))[:, None] & inside

    source = qk_ptr + token * qk_stride + head[:, None] * (2 * HALF) + columns[None, :]
    first = tl.load(source, mask=is_turned, other=0.0)
    second = tl.load(source + HALF, mask=is_turned, other=0.0)
    if NORMED:
        weights = norm_ptr + head[:, None] * (2 * HALF) + columns[None, :]
        a, b = first.to(tl.float32), second.to(tl.float32)
        factor = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
        first = (a * factor * tl.load(weights, mask=is_turned, other=0.0)).to(first.dtype)
        second = (b * factor * tl.load(weights + HALF, mask=is_turned, other=0.0)).to(second.dtype)
    if ROTATED:
        table = token * (2 * HALF) + HALF + columns
        cos = tl.load(cos_ptr + table, mask=columns < HALF, other=0.0)[None, :]
        sin = tl.load(sin_ptr + table, mask=columns < HALF, other=0.0)[None, :]
        a, b = first.to(tl.float32), second.to(tl.float32)
        first = (a * cos - b * sin).to(first.dtype)
        second = (b * cos + a * sin).to(second.dtype)

    target = out_ptr + token * (HEADS * 2 * HALF) + head[:, None] * (2 * HALF) + columns[None, :]
    tl.store(target, first, mask=is_query)
    tl.store(target + HALF, second, mask=is_query)

    source = v_ptr + token * v_stride + (head - HEADS - KV_HEADS)[:, None] * (2 * HALF) + columns[None, :]
    first = tl.where(is_value, tl.load(source, mask=is_value, other=0.0), first)
    second = tl.where(is_value, tl.load(source + HALF, mask=is_value, other=0.0), second)
    slot = tl.load(slots_ptr + token)
    # Keys and values of a block follow each other as kv_heads + kv_heads heads, as they do here.
    entry = (head - HEADS) * BLOCK_TOKENS + slot % BLOCK_TOKENS
    target = kv_ptr + slot // BLOCK_TOKENS * block_stride + entry[:, None] * (2 * HALF) + columns[None, :]
    factor = None
    if FLOAT8 != "":
        factor = tl.where(head < HEADS + KV_HEADS, key_factor, value_factor)[:, None]
    tl.store(target, as_entries(first, factor, kv_ptr.dtype.element_ty, FLOAT8), mask=is_stored)
    tl.store(target + HALF, as_entries(second, factor, kv_ptr.dtype.element_ty, FLOAT8), mask=is_stored)


@triton.jit
def plain_rows(x_ptr, starts, valid, D: tl.constexpr, D_PAD: tl.constexpr):
    """Heads at ``x_ptr + starts``; 0 where not valid."""
    columns = tl.arange(0, D_PAD)
    return tl.load(x_ptr + starts[:, None] + columns[None, :], mask=valid[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def rotated_rows(
    x_ptr, starts, cos_ptr, sin_ptr, table_starts, norm_ptr, norm_starts, eps, valid, ROTATED: tl.constexpr,
    NORMED: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
):  # fmt: skip
    """Heads at ``x_ptr + starts``, normalized with the weights at ``norm_starts`` and turned by the tables at
    ``table_starts`` in float32, in x's type; 0 where not valid.

    Full-width tables have negative sines in the first half, so that every column is x * cos + opposite x * sin.
    """
    columns = tl.arange(0, D_PAD)
    inside = valid[:, None] & (columns < D)[None, :]
    x = plain_rows(x_ptr, starts, valid, D, D_PAD)
    opposite = tl.where(columns < D // 2, columns + D // 2, columns - D // 2)
    if ROTATED:
        y = tl.load(x_ptr + starts[:, None] + opposite[None, :], mask=inside, other=0.0)
    if NORMED:
        wide = x.to(tl.float32)
        factor = tl.rsqrt(tl.sum(wide * wide, 1) / D + eps)[:, None]
        weights = norm_ptr + norm_starts[:, None]
        x = (wide * factor * tl.load(weights + columns[None, :], mask=inside, other=0.0)).to(x.dtype)
        if ROTATED:
            y = (y.to(tl.float32) * factor * tl.load(weights + opposite[None, :], mask=inside, other=0.0)).to(y.dtype)
    if ROTATED:
        cos = tl.load(cos_ptr + table_starts[:, None] + columns[None, :], mask=inside, other=0.0)
        sin = tl.load(sin_ptr + table_starts[:, None] + columns[None, :], mask=inside, other=0.0)
        x = (x.to(tl.float32) * cos + y.to(tl.float32) * sin).to(x.dtype)
    return x


@triton.jit
def key_places(
    table_ptr, start, positions, inside, block_stride, D: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """int64 offsets of the keys at ``positions`` of one KV head. Tiles are aligned, so that a block of their size or
    more needs one entry of the table."""
    if BLOCK_TOKENS >= BLOCK_N:
        block = tl.load(table_ptr + start // BLOCK_TOKENS)
        return block * block_stride + (positions % BLOCK_TOKENS) * D
    else:
        blocks = tl.load(table_ptr + positions // BLOCK_TOKENS, mask=inside, other=0)
        return blocks * block_stride + (positions % BLOCK_TOKENS) * D


@triton.jit
def load_tile(base_ptr, places, inside, MASKED: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr):
    """[BLOCK_N, D_PAD] keys or values. What lies in an entry that is not inside, even NaN, is not read."""
    columns = tl.arange(0, D_PAD)
    pointers = base_ptr + places[:, None] + columns[None, :]
    if MASKED:
        if D == D_PAD:
            return tl.load(pointers, mask=inside[:, None], other=0.0)
        else:
            return tl.load(pointers, mask=inside[:, None] & (columns < D)[None, :], other=0.0)
    else:
        if D == D_PAD:
            return tl.load(pointers)
        else:
            return tl.load(pointers, mask=(columns < D)[None, :], other=0.0)


@triton.jit
def beginning(sinks_ptr, heads, valid, HAS_SINKS: tl.constexpr, BLOCK_M: tl.constexpr):
    """(total, top) of lines that have seen nothing but the sinks of ``heads`` [BLOCK_M], if there are any."""
    if HAS_SINKS:
        top = tl.load(sinks_ptr + heads, mask=valid, other=0.0) * 1.4426950408889634  # LOG2_E
        total = tl.full([BLOCK_M], 1.0, dtype=tl.float32)
    else:
        total = tl.zeros([BLOCK_M], dtype=tl.float32)
        top = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    return total, top


@triton.jit
def attend_tile(
    q, acc, total, top, keys_ptr, values_ptr, table_ptr, start, low, high, query_positions, scale, soft_cap, window,
    block_stride, MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, D: tl.constexpr,
    D_PAD: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, FLOAT8: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax (Milakov and Gimelshein 2018; FlashAttention-2, Dao 2023) over the keys
    [start, start + BLOCK_N), of which those in [low, high) are read. Scores are in powers of two: ``scale`` has been
    multiplied by log2(e), or with a soft cap ``soft_cap`` has, and ``scale`` divided by the cap.

    A tile that is not MASKED is seen whole by every query. Returns acc, total, top.
    """
    positions = start + tl.arange(0, BLOCK_N)
    inside = (positions >= low) & (positions < high)
    places = key_places(table_ptr, start, positions, inside, block_stride, D, BLOCK_TOKENS, BLOCK_N)
    keys = entries_as(load_tile(keys_ptr, places, inside, MASKED, D, D_PAD), q.dtype, FLOAT8)
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee")
    factor = scale
    if HAS_CAP:
        scores = soft_cap * (2.0 * tl.sigmoid(2.0 * scale * scores) - 1.0)  # soft_cap * tanh(scale * scores)
        factor = 1.0
    if MASKED:
        seen = inside[None, :] & (positions[None, :] <= query_positions[:, None])
        if HAS_WINDOW:
            seen = seen & (positions[None, :] > query_positions[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * factor)
    if MASKED:
        reference = tl.where(new_top == float("-inf"), 0.0, new_top)  # of a query that has seen nothing yet
    else:
        reference = new_top
    weights = tl.exp2(scores * factor - reference[:, None])
    kept = tl.exp2(top - reference)
    total = total * kept + tl.sum(weights, 1)
    values = entries_as(load_tile(values_ptr, places, inside, MASKED, D, D_PAD), q.dtype, FLOAT8)
    acc = tl.dot(weights.to(q.dtype), values, acc * kept[:, None], input_precision="ieee")
    return acc, total, new_top


def aot_pools(target: Target) -> tuple[tuple[str, str], ...]:
    """Of the kernels that read or write a pool: FLOAT8 and the type of its elements, in 16 bits and in float8."""
    return ("", "*bf16"), (_way(target.capability), "*u8")


AOT: tuple[AotCase, ...] = tuple(
    AotCase(
        kernel=_rotate_and_write,
        signature={
            "qk_ptr": "*bf16",
            "v_ptr": "*bf16",
            "cos_ptr": "*fp32",
            "sin_ptr": "*fp32",
            "kv_ptr": pool,
            "slots_ptr": "*i64",
            "out_ptr": "*bf16",
            "qk_stride": "i32:16",
            "v_stride": "i32:16",
            "block_stride": "i32:16",
            "norm_ptr": "*fp32",
            "eps": "fp32",
            **dict.fromkeys(("key_factor", "value_factor") if float8 else (), "fp32"),
        },
        constants={
            **dict.fromkeys(() if float8 else ("key_factor", "value_factor")),
            "HEADS": 32,
            "KV_HEADS": 8,
            "HALF": 64,
            "HALF_PAD": 64,
            "BLOCK_TOKENS": 16,
            "BLOCK_HEADS": 16,
            "ROTATED": True,
            "NORMED": True,
            "FLOAT8": float8,
        },
        targets=(target.name,),
    )
    for target in TARGETS.values()
    for float8, pool in aot_pools(target)
)
