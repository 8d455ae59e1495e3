"""Reference of paged attention: one row, one head at a time, softmax in float32. Knows no backend."""

from __future__ import annotations

import math

import torch


def paged_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    query_start: torch.Tensor,
    kv_lens: torch.Tensor,
    block_table: torch.Tensor,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
) -> torch.Tensor:
    """Causal attention of the newest tokens of every row over the row's blocks.

    q [tokens, heads, d]; kv [blocks, 2, block_tokens, kv_heads, d] that already holds this step's keys and values;
    query_start [rows + 1]; kv_lens [rows] with this step's tokens; block_table [rows, max blocks]. The last query of a
    row stands at position kv_len - 1 and sees ``window`` positions, its own included (None: all).
    ``soft_cap`` bends scores to ``cap * tanh(score / cap)`` before the mask (Gemma 2). Returns q's shape and type.
    """
    out = torch.zeros_like(q)
    group = q.shape[1] // kv.shape[3]
    starts, lens = query_start.tolist(), kv_lens.tolist()
    for row, kv_len in enumerate(lens):
        first, last = starts[row], starts[row + 1]
        for token in range(first, last):
            position = kv_len - (last - token)
            lowest = 0 if window is None else max(0, position - window + 1)
            keys, values = _gather(kv, block_table[row], lowest, position + 1)
            for head in range(q.shape[1]):
                scores = keys[:, head // group] @ q[token, head].to(torch.float32) * scale
                if soft_cap is not None:
                    scores = soft_cap * torch.tanh(scores / soft_cap)
                weights = torch.exp(scores - scores.max())
                out[token, head] = (weights / weights.sum()) @ values[:, head // group]
    return out


def _gather(kv: torch.Tensor, blocks: torch.Tensor, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the positions [low, high), float32 [positions, kv_heads, d]."""
    block_tokens = kv.shape[2]
    used = kv[blocks[low // block_tokens : math.ceil(high / block_tokens)]].to(torch.float32)
    offset = low - low // block_tokens * block_tokens
    keys, values = (used[:, i].flatten(0, 1)[offset : offset + high - low] for i in (0, 1))
    return keys, values
