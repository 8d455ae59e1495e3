"""Multiplications of few rows in Triton's interpreter, in float32, against their reference: odd sizes, every way to
deal the blocks out."""

from __future__ import annotations

import pytest
import torch

from penstock.kernels import reference
from penstock.kernels.ops import OPS

pytest.importorskip("triton")
from triton import knobs

from penstock.kernels.triton.linear import (
    DotTiling,
    VectorTiling,
    arrivals_on,
    linear_skinny,
    tiling_of,
)

pytestmark = pytest.mark.skipif(not knobs.runtime.interpret, reason="for Triton's interpreter; tests/gpu has the card")

SMALL = DotTiling(16, 32, 1, 4, 2)
TOLERANCE = OPS["linear"].tolerance["float32"]


def _values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _check(found: torch.Tensor, wanted: torch.Tensor) -> None:
    relative, absolute = TOLERANCE
    scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
    torch.testing.assert_close(found, wanted, rtol=relative, atol=absolute * scale)


@pytest.mark.parametrize("shape", [(1, 16), (40, 100), (128, 576), (70, 1536), (33, 4096)], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 33, 64])
def test_linear_agrees_with_its_reference(shape: tuple[int, int], rows: int) -> None:
    weight, bias = _values(*shape, seed=1), _values(shape[0], seed=2)
    x = _values(rows, shape[1] + 13)[:, : shape[1]]
    for b in (None, bias):
        _check(linear_skinny(x, weight, b), reference.linear(x, weight, b))


@pytest.mark.parametrize("programs", [1, 2, 4, 7, 40])
@pytest.mark.parametrize("columns", [96, 250])
def test_blocks_can_be_dealt_out_to_any_number_of_programs(programs: int, columns: int) -> None:
    """Tiles in one part, in two, in many, and programs that touch three tiles; counters are zero afterwards."""
    weight, bias, x = _values(75, columns, seed=1), _values(75, seed=2), _values(7, columns)
    found = linear_skinny(x, weight, bias, tiling=SMALL, programs=programs)
    _check(found, reference.linear(x, weight, bias))
    assert torch.equal(found, linear_skinny(x, weight, bias, tiling=SMALL, programs=programs))
    assert not arrivals_on(x.device).any()


@pytest.mark.parametrize("shape", [(1, 16), (75, 250), (70, 1536)], ids=str)
def test_vector_units_agree_with_the_reference(shape: tuple[int, int]) -> None:
    weight, bias, x = _values(*shape, seed=1), _values(shape[0], seed=2), _values(1, shape[1])
    for b in (None, bias):
        found = linear_skinny(x, weight, b, tiling=VectorTiling(8, 128, 4))
        _check(found, reference.linear(x, weight, b))


def test_a_result_can_be_columns_of_a_wider_one() -> None:
    weight, x = _values(37, 64, seed=1), _values(9, 64)
    for tiling in (SMALL, None):
        wide = torch.full((9, 60), 7.0)
        found = linear_skinny(x, weight, None, wide[:, 10:47], tiling=tiling)
        assert found.data_ptr() == wide[:, 10:].data_ptr()
        assert torch.equal(found, linear_skinny(x, weight, tiling=tiling))
        assert (wide[:, :10] == 7).all()
        assert (wide[:, 47:] == 7).all()


def test_a_nan_stays_in_its_row() -> None:
    weight, x = _values(40, 96, seed=1), _values(5, 96)
    x[3, 95] = float("nan")
    found = linear_skinny(x, weight, tiling=SMALL, programs=4)
    assert found.isnan().all(dim=1).tolist() == [False, False, False, True, False]
    assert found.isnan().any(dim=1).tolist() == [False, False, False, True, False]


def test_what_does_not_fit_is_refused() -> None:
    weight, x = _values(40, 96), _values(5, 96)
    with pytest.raises(ValueError, match="cannot multiply"):
        linear_skinny(_values(5, 95), weight)
    with pytest.raises(ValueError, match="cannot multiply"):
        linear_skinny(_values(129, 96), weight)
    with pytest.raises(ValueError, match="of one type"):
        linear_skinny(x.half(), weight)
    with pytest.raises(ValueError, match="contiguous"):
        linear_skinny(x, _values(96, 40).T)
    with pytest.raises(ValueError, match="the result is"):
        linear_skinny(x, weight, None, torch.empty(5, 41))
    with pytest.raises(ValueError, match="take one row"):
        linear_skinny(x, weight, tiling=VectorTiling(8, 32, 4))


@pytest.mark.parametrize(("columns", "block"), [(4096, 128), (576, 64), (1536, 128), (96, 32), (100, 128)])
def test_blocks_of_columns_leave_no_rest_where_they_can(columns: int, block: int) -> None:
    tiling = tiling_of(1, columns)
    assert tiling.block_k == block


@pytest.mark.parametrize("shared_bytes", [100 << 10, 164 << 10, 228 << 10])
def test_tilings_fit_the_shared_memory(shared_bytes: int) -> None:
    """What is on the way, and the sums on their way out."""
    for rows in (1, 17, 64, 128):
        tiling = tiling_of(rows, 4096, shared_bytes)
        room = max(16, 1 << (rows - 1).bit_length())
        needed = 2 * tiling.stages * tiling.block_k * (tiling.block_n + room) + 2 * tiling.block_n * room
        assert needed <= shared_bytes - 1024
