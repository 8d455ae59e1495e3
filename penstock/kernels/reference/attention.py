"""Reference of paged attention and of the write before it: float32, one query at a time. Knows no backend.

A pool of float8 e4m3 has one scale for its keys and one for its values: an entry stands for its value times the scale.
"""

from __future__ import annotations

import math

import torch

from penstock.kernels.reference.rotary import rotary

LARGEST_FLOAT8 = 448.0


def rotate_and_write(
    qk: torch.Tensor,
    v: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor] | None,
    kv: torch.Tensor,
    slots: torch.Tensor,
    kv_scales: tuple[float, float] = (1.0, 1.0),
) -> torch.Tensor:
    """Rotate queries and keys, then write keys and values to their slots.

    qk [tokens, heads + kv_heads, d], queries first; v [tokens, kv_heads, d]; tables as ``rotary`` wants them, None
    leaves qk as it is; kv [blocks, 2, block_tokens, kv_heads, d], changed in place; slots [tokens] int64, block
    number * block_tokens + place. Returns the queries [tokens, heads, d].
    """
    if tables is not None:
        qk = rotary(qk, *tables)
    heads, block_tokens = qk.shape[1] - v.shape[1], kv.shape[2]
    for token, slot in enumerate(slots.tolist()):
        block, place = divmod(slot, block_tokens)
        kv[block, 0, place] = stored(qk[token, heads:], kv.dtype, kv_scales[0])
        kv[block, 1, place] = stored(v[token], kv.dtype, kv_scales[1])
    return qk[:, :heads]


def stored(values: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """What a cache of this type holds of keys or values: float8 of values divided by the scale and cut at +-448, beyond
    which torch makes NaN; NaN stays NaN."""
    if dtype is not torch.float8_e4m3fn:
        return values.to(dtype)
    return (values.to(torch.float32) * (1.0 / scale)).clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8).to(dtype)


def paged_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    query_start: torch.Tensor,
    kv_lens: torch.Tensor,
    block_table: torch.Tensor,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
    kv_scales: tuple[float, float] = (1.0, 1.0),
) -> torch.Tensor:
    """Causal attention of the newest tokens of every row over the row's blocks.

    q [tokens, heads, d]; kv [blocks, 2, block_tokens, kv_heads, d] that already holds this step's keys and values;
    query_start [rows + 1]; kv_lens [rows] with this step's tokens; block_table [rows, max blocks]. The last query of a
    row stands at position kv_len - 1 and sees ``window`` positions, its own included (None: all).
    ``soft_cap`` bends scores to ``cap * tanh(score / cap)`` before the mask (Gemma 2). ``sinks`` float32 [heads] are
    scores that each head's softmax has besides, of a key whose value is zero (gpt-oss). Returns q's shape and type.
    """
    out = torch.zeros_like(q)
    kv_heads, head_dim = kv.shape[3:]
    starts, lens = query_start.tolist(), kv_lens.tolist()
    for row, kv_len in enumerate(lens):
        first, last = starts[row], starts[row + 1]
        history = kv_len - (last - first)
        low = 0 if window is None else max(0, history - window + 1)
        if first == last:
            continue
        keys, values = (x * s for x, s in zip(_gather(kv, block_table[row], low, kv_len), kv_scales, strict=True))
        for token in range(first, last):
            position = history + token - first
            lowest = 0 if window is None else max(0, position - window + 1)
            seen = slice(lowest - low, position + 1 - low)
            query = q[token].to(torch.float32).reshape(kv_heads, -1, head_dim)  # heads that share keys lie together
            scores = torch.einsum("kgd,lkd->kgl", query, keys[seen]) * scale
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            if sinks is not None:
                scores = torch.cat((scores, sinks.view(kv_heads, -1, 1)), dim=-1)
            weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
            weights = (weights / weights.sum(dim=-1, keepdim=True))[..., : position + 1 - lowest]
            out[token] = torch.einsum("kgl,lkd->kgd", weights, values[seen]).reshape(q.shape[1:])
    return out


def _gather(kv: torch.Tensor, blocks: torch.Tensor, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the positions [low, high), float32 [positions, kv_heads, d]."""
    block_tokens = kv.shape[2]
    wanted = blocks[low // block_tokens : math.ceil(high / block_tokens)]
    used = elements(kv)[wanted].view(kv.dtype).to(torch.float32)
    offset = low - low // block_tokens * block_tokens
    keys, values = (used[:, i].flatten(0, 1)[offset : offset + high - low] for i in (0, 1))
    return keys, values


def elements(kv: torch.Tensor) -> torch.Tensor:
    """What torch can index: float8 as bytes."""
    return kv.view(torch.uint8) if kv.dtype is torch.float8_e4m3fn else kv
