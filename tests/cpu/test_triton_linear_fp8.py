"""Multiplications with float8 weights in Triton's interpreter, in float32, against their references. Its rounding to
float8 is wrong, so kernels round by integers there, as they do on devices without float8."""

from __future__ import annotations

import pytest
import torch

from penstock.kernels import reference
from penstock.kernels.ops import OPS

pytest.importorskip("triton")
from triton import knobs

from penstock.kernels.triton.linear import DotTiling, VectorTiling, arrivals_on
from penstock.kernels.triton.linear_fp8 import (
    ProductTiling,
    linear_fp8,
    linear_fp8_dynamic,
    product_tiling_of,
    quantize_fp8,
)

pytestmark = pytest.mark.skipif(not knobs.runtime.interpret, reason="for Triton's interpreter; tests/gpu has the card")

TOLERANCE = OPS["linear_fp8"].tolerance["float32"]
SMALL = DotTiling(16, 32, 1, 4, 2)
GROUPS = [0, 128]


def _values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _weight(outs: int, columns: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows, and groups in them, of very different sizes."""
    sizes = torch.logspace(-2, 2, outs)[:, None] * torch.linspace(1, 30, columns)[None, :]
    return reference.quantize_fp8(_values(outs, columns, seed=1) * sizes, group)


def _check(
    found: torch.Tensor, wanted: torch.Tensor, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> None:
    """Tolerances are for results of unit size; each of these has its own, that of its row of x and of the weight."""
    relative, absolute = TOLERANCE
    size = x.norm(dim=1)[:, None] * reference.dequantize_fp8(codes, scales).norm(dim=1)[None, :]
    torch.testing.assert_close(found / size, wanted / size, rtol=relative, atol=absolute / x.shape[1] ** 0.5)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(1, 128), (40, 256), (150, 384)], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 33, 130])
def test_weights_alone(group: int, shape: tuple[int, int], rows: int) -> None:
    codes, scales = _weight(*shape, group)
    bias, x = _values(shape[0], seed=2), _values(rows, shape[1] + 16)[:, : shape[1]]
    for b in (None, bias):
        _check(linear_fp8(x, codes, scales, b), reference.linear_fp8(x, codes, scales, b), x, codes, scales)


def test_columns_that_are_no_whole_block() -> None:
    codes, scales = _weight(70, 208, 0)
    x = _values(9, 208)
    _check(linear_fp8(x, codes, scales, tiling=SMALL), reference.linear_fp8(x, codes, scales), x, codes, scales)
    _check(linear_fp8_dynamic(x, codes, scales), reference.linear_fp8_dynamic(x, codes, scales), x, codes, scales)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("programs", [1, 3, 9])
def test_blocks_can_be_dealt_out_to_any_number_of_programs(group: int, programs: int) -> None:
    codes, scales = _weight(75, 256, group)
    bias, x = _values(75, seed=2), _values(7, 256)
    found = linear_fp8(x, codes, scales, bias, tiling=SMALL, programs=programs)
    _check(found, reference.linear_fp8(x, codes, scales, bias), x, codes, scales)
    assert torch.equal(found, linear_fp8(x, codes, scales, bias, tiling=SMALL, programs=programs))
    assert not arrivals_on(x.device).any()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rows", [0, 1, 20])
@pytest.mark.parametrize(
    "tiling", [None, ProductTiling(16, 32, 64, 4, 2, group=2), SMALL], ids=["default", "small", "streamed"]
)
def test_activations_too(group: int, rows: int, tiling: ProductTiling | DotTiling | None) -> None:
    codes, scales = _weight(150, 256, group)
    bias, x = _values(150, seed=2), _values(rows, 256) * torch.logspace(-3, 3, rows)[:, None]
    for b in (None, bias):
        wide = torch.full((rows, 170), 7.0)
        found = linear_fp8_dynamic(x, codes, scales, b, wide[:, 10:160], tiling=tiling)
        _check(found, reference.linear_fp8_dynamic(x, codes, scales, b), x, codes, scales)
        assert found.data_ptr() == wide[:, 10:].data_ptr()
        assert (wide[:, :10] == 7).all()
        assert (wide[:, 160:] == 7).all()


# The interpreter computes in numpy, which warns where a float is none.
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("group", [0, 32, 128])
@pytest.mark.parametrize("columns", [128, 2304])
def test_quantized_rows_are_the_bits_of_the_reference(group: int, columns: int) -> None:
    x = _values(9, columns + 5)[:, :columns] * torch.logspace(-12, 4, 9)[:, None]
    x[2] = 0
    x[3, 5], x[4, 7], x[5, 1] = float("nan"), float("inf"), -float("inf")
    x[6, :8] = torch.tensor([448, 2**-6, 2**-9, 2**-10, 3 * 2**-10, 17.0, 18.0, 19.0])  # halves between two codes
    for some in (x, x.half()):
        wanted, found = reference.quantize_fp8(some, group), quantize_fp8(some, group)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    assert found[1].isnan().any(dim=1).tolist() == [row in (3, 4, 5) for row in range(9)]


def test_rounding_to_float8_is_that_of_torch() -> None:
    """All values that lie on a code, between two, and just beside."""
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    between = (codes[1:] + codes[:-1]) / 2
    values = torch.cat([codes, between, between.nextafter(codes[1:]), between.nextafter(codes[:-1])])
    x = torch.cat([values, -values]).repeat(1, 1)
    assert x.abs().max() == 448
    assert torch.equal(quantize_fp8(x)[0], x.to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("group", GROUPS)
def test_a_nan_stays_in_its_row(group: int) -> None:
    codes, scales = _weight(40, 256, group)
    x = _values(5, 256)
    x[3, 95] = float("nan")
    for found in (linear_fp8(x, codes, scales), linear_fp8_dynamic(x, codes, scales)):
        assert found.isnan().all(dim=1).tolist() == [False, False, False, True, False]
        assert found.isnan().any(dim=1).tolist() == [False, False, False, True, False]


def test_what_does_not_fit_is_refused() -> None:
    codes, scales = _weight(40, 256, 128)
    x = _values(5, 256)
    with pytest.raises(ValueError, match="no scales of 40 rows"):
        linear_fp8(x, codes, scales[:39])
    with pytest.raises(ValueError, match="blocks of 64 columns do not fit scales of 32"):
        linear_fp8(x, *_weight(40, 256, 32), tiling=DotTiling(16, 64, 1, 4, 2))
    with pytest.raises(ValueError, match="one row and no scales"):
        linear_fp8(x[:1], codes, scales, tiling=VectorTiling(8, 128, 4))
    with pytest.raises(ValueError, match="do not fit scales of 32"):
        linear_fp8_dynamic(x, *_weight(40, 256, 32))
    with pytest.raises(ValueError, match="no whole number of groups"):
        quantize_fp8(x, 100)


@pytest.mark.parametrize("shared_bytes", [100 << 10, 164 << 10, 228 << 10])
def test_tilings_fit_the_shared_memory(shared_bytes: int) -> None:
    """What is on the way: cards with float8 in their matrix units have as little as 100 KiB."""
    for rows, outs in ((64, 4096), (65, 4096), (4096, 4096)):
        tiling = product_tiling_of(rows, outs, shared_bytes)
        assert tiling.stages * tiling.block_k * (tiling.block_r + tiling.block_n) <= shared_bytes - 1024
