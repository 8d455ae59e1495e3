"""Batch-invariant kernels in Triton's interpreter, in float32: right, and a row's bits are the same in every batch.

numpy's products are replaced where bits are compared, because it sums in another order in each corner of a product.
What stands in for them does what is asked of a matrix unit: every element takes its products first to last. That a
card's units do it too is for tests/gpu/test_deterministic.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from penstock.kernels import reference
from penstock.kernels.ops import OPS

pytest.importorskip("triton")
from triton import knobs
from triton.runtime import interpreter

from penstock.kernels.triton.attention import PagedRows, Scoring
from penstock.kernels.triton.attention_prefill import prefill
from penstock.kernels.triton.linear_invariant import (
    BLOCK_K,
    MANY_ROWS,
    TILINGS,
    InvariantTiling,
    fitted,
    linear_invariant,
    tiling_of,
)

pytestmark = pytest.mark.skipif(not knobs.runtime.interpret, reason="for Triton's interpreter; tests/gpu has the card")

BLOCK = 16
SMALL = InvariantTiling(16, 16, 4, 2, 1)


def _values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def products_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def dot(_builder: Any, a: Any, b: Any, d: Any, *_options: Any) -> Any:
        sums = d.data
        for k in range(a.data.shape[1]):
            sums = sums + a.data[:, k, None] * b.data[None, k]
        return interpreter.TensorHandle(sums, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


def _check(op: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    relative, absolute = OPS[op].tolerance["float32"]
    scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
    torch.testing.assert_close(found, wanted, rtol=relative, atol=absolute * scale)


@pytest.mark.parametrize("shape", [(1, 16), (40, 100), (300, 192)], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 33, 130, 300])
def test_linear_agrees_with_its_reference(shape: tuple[int, int], rows: int) -> None:
    weight, bias = _values(*shape, seed=1), _values(shape[0], seed=2)
    x = _values(rows, shape[1] + 13)[:, : shape[1]]
    for b in (None, bias):
        _check("linear", linear_invariant(x, weight, b), reference.linear(x, weight, b))


@pytest.mark.parametrize("outs", [15, 75])
@pytest.mark.parametrize("rows", [7, 130, 150])
def test_every_tile_is_computed_once(outs: int, rows: int) -> None:
    """Groups of tiles of rows, the last one not full."""
    weight, x = _values(outs, 80, seed=1), _values(rows, 80)
    wide = torch.full((rows, outs + 9), 7.0)
    _check(
        "linear", linear_invariant(x, weight, None, wide[:, 5 : 5 + outs], tiling=SMALL), reference.linear(x, weight)
    )
    assert (wide[:, :5] == 7).all()
    assert (wide[:, 5 + outs :] == 7).all()


@pytest.mark.usefixtures("products_in_order")
@pytest.mark.parametrize("columns", [192, 100])
def test_a_row_of_a_product_is_the_same_bits_in_every_batch(columns: int) -> None:
    """Through every tiling: the last rows of a batch are those of the smallest one."""
    weight, bias, x = _values(70, columns, seed=1), _values(70, seed=2), _values(300, columns)
    alone = torch.cat([linear_invariant(row[None], weight, bias) for row in x[-5:]])
    for rows in (16, 17, 33, 65, 129, 300):
        assert torch.equal(linear_invariant(x[-rows:], weight, bias)[-5:], alone), rows
    for tiling in (MANY_ROWS, InvariantTiling(32, 64, 4, 2, 1)):
        assert torch.equal(linear_invariant(x, weight, bias, tiling=tiling)[-5:], alone)


def test_what_does_not_fit_is_refused() -> None:
    weight, x = _values(40, 96), _values(5, 96)
    with pytest.raises(ValueError, match="cannot multiply"):
        linear_invariant(_values(5, 95), weight)
    with pytest.raises(ValueError, match="of one type"):
        linear_invariant(x.half(), weight)
    with pytest.raises(ValueError, match="the result is"):
        linear_invariant(x, weight, None, torch.empty(5, 41))


@pytest.mark.parametrize("shared_bytes", [100 << 10, 164 << 10, 228 << 10])
def test_tilings_fit_the_shared_memory(shared_bytes: int) -> None:
    for tiling in (*TILINGS.values(), MANY_ROWS):
        found = fitted(tiling, shared_bytes)
        assert 2 * found.stages * BLOCK_K * (found.block_n + found.block_r) <= shared_bytes - 1024


def test_large_tiles_are_for_as_many_as_fill_the_device() -> None:
    assert tiling_of(1, 4096, 132) == TILINGS[16]
    assert tiling_of(65, 4096, 132) == TILINGS[128]
    assert tiling_of(300, 4096, 132) == TILINGS[256]
    assert tiling_of(8192, 4096, 132) == MANY_ROWS


class Context:
    """One request's keys and values of ``length`` tokens in a pool, everything else NaN, and its rotated queries."""

    def __init__(self, length: int, *, group: int, kv_heads: int, head_dim: int) -> None:
        blocks = -(-length // BLOCK)
        self.length, self.heads = length, group * kv_heads
        self.q = _values(length, self.heads, head_dim, seed=1)
        self.kv = torch.full((blocks + 3, 2, kv_heads, BLOCK, head_dim), float("nan"))
        self.table = torch.randperm(blocks + 3, generator=torch.Generator().manual_seed(2))[None, :blocks]
        entries = _values(length, 2, kv_heads, head_dim, seed=3)
        for position, entry in enumerate(entries):
            self.kv[self.table[0, position // BLOCK], :, :, position % BLOCK] = entry

    def attend(self, first: int, last: int, scoring: Scoring, *, beside: int = 0) -> torch.Tensor:
        """The queries [first, last), with ``beside`` rows in front that decode the request's first tokens."""
        queries = torch.cat([*[self.q[:1]] * beside, self.q[first:last]])
        counts = torch.tensor([0] + [1] * beside + [last - first]).cumsum(0)
        lens = torch.tensor([1] * beside + [last])
        table = self.table.expand(beside + 1, -1)
        out = torch.full_like(queries, float("nan"))
        prefill(queries, self.kv, PagedRows(counts, lens, table, counts), out, scoring, batch_invariant=True)
        return out[beside:]

    def wanted(self, scoring: Scoring) -> torch.Tensor:
        return reference.paged_attention(
            self.q, self.kv.transpose(2, 3), torch.tensor([0, self.length]), torch.tensor([self.length]), self.table,
            scoring.scale, scoring.window, scoring.soft_cap, scoring.sinks,
        )  # fmt: skip


@pytest.mark.usefixtures("products_in_order")
@pytest.mark.parametrize(
    ("head_dim", "group", "window", "soft_cap", "sinks"),
    [
        (16, 1, None, None, False),
        (80, 3, None, None, False),
        (24, 3, 20, None, False),
        (16, 8, 50, 3.0, False),
        (24, 3, 20, None, True),
    ],
)
def test_a_query_is_the_same_bits_however_its_prompt_is_cut(
    head_dim: int, group: int, window: int | None, soft_cap: float | None, sinks: bool
) -> None:
    context = Context(83, group=group, kv_heads=1, head_dim=head_dim)
    scoring = Scoring(head_dim**-0.5, window, soft_cap, _values(group, seed=4) * 2 if sinks else None)
    whole = context.attend(0, 83, scoring)
    _check("paged_attention", whole, context.wanted(scoring))
    cuts = (0, 1, 2, 32, 47, 83)
    parts = [context.attend(first, last, scoring) for first, last in pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)
    for position in (31, 32, 82):
        assert torch.equal(context.attend(position, position + 1, scoring, beside=3)[0], whole[position]), position
