"""Native rotation with the write to the cache against its reference: all instruction sets and types of the cache."""

from __future__ import annotations

import pytest
import torch
from op_grids.cells import values
from op_grids.rotary import tables

from penstock.kernels.implementation import Implementation, OpSpec
from penstock.kernels.native import implementations
from penstock.kernels.native.attention import TILE, rotate_and_write, tile_elements
from penstock.kernels.ops import OPS
from penstock.platforms.probe import probe_platform

HERE = OpSpec(dtype="float32", platform=probe_platform())
BLOCK_TOKENS, BLOCKS = 32, 5
# Beside the op's own tolerance: what the type of the cache may lose, relative to a value and to its head's largest.
ROUNDING = {torch.float32: (0.0, 0.0), torch.bfloat16: (2**-8, 0.0), torch.int8: (0.0, 0.51 / 127)}
SHAPES = ((1, 1, 1, 2), (7, 3, 1, 10), (33, 9, 3, 64), (0, 2, 1, 16), (70, 4, 4, 80))


def rows() -> list[object]:
    found: list[object] = []
    for each in implementations(rotate_and_write):
        verdict = each.can_run(HERE)
        marks = [] if verdict.ok else [pytest.mark.skip(reason="; ".join(verdict.reasons))]
        found.append(pytest.param(each, id=each.name, marks=marks))
    return found


def plain(kv: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Tiles as [blocks, 2, block_tokens, kv_heads, head_dim] in float32; see penstock.attention.backends.cpu_native."""
    padded = -(-head_dim // TILE) * TILE
    keys = kv[..., : head_dim * TILE].unflatten(-1, (head_dim, TILE)).float().transpose(-1, -2)
    entries = (
        kv[..., head_dim * TILE : (head_dim + padded) * TILE].unflatten(-1, (TILE, padded))[..., :head_dim].float()
    )
    if kv.dtype is torch.int8:
        scales = kv[..., (head_dim + padded) * TILE :].contiguous().view(torch.float32)[..., None]
        keys, entries = keys * scales[..., :TILE, :], entries * scales[..., TILE:, :]
    return torch.stack([part.flatten(2, 3).transpose(1, 2) for part in (keys, entries)], dim=1)


@pytest.mark.parametrize("implementation", rows())
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("turned", [True, False])
def test_queries_and_cache_agree_with_the_reference(
    implementation: Implementation, dtype: torch.dtype, shape: tuple[int, int, int, int], turned: bool
) -> None:
    tokens, heads, kv_heads, head_dim = shape
    projected = values(tokens, heads + 2 * kv_heads, head_dim, dtype=torch.float32)  # rows with a stride
    qk, v = projected[:, : heads + kv_heads], projected[:, heads + kv_heads :]
    angles = tables(tokens, head_dim) if turned else None
    slots = torch.randperm(BLOCKS * BLOCK_TOKENS)[:tokens]
    pool = torch.zeros((BLOCKS, kv_heads, BLOCK_TOKENS // TILE, tile_elements(dtype, head_dim)), dtype=dtype)
    queries = implementation.function(qk, v, angles, pool, slots, BLOCK_TOKENS, scale=0.5)
    op = OPS["rotate_and_write"]
    wanted_pool = torch.zeros(BLOCKS, 2, BLOCK_TOKENS, kv_heads, head_dim)
    wanted = op.reference(qk, v, angles, wanted_pool, slots)
    relative, absolute = op.tolerance["float32"]
    torch.testing.assert_close(queries, wanted * 0.5, rtol=relative, atol=absolute * 4)
    lost, of_largest = ROUNDING[dtype]
    largest = wanted_pool.abs().amax(dim=-1, keepdim=True)
    bound = (relative + lost) * wanted_pool.abs() + of_largest * largest + absolute * 4
    assert bool(((plain(pool, head_dim) - wanted_pool).abs() <= bound).all())
