"""Multiplications with float8 weights on the card, at the shapes of real models, against torch in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from penstock.kernels import reference
from penstock.kernels.ops import OPS
from penstock.platforms.probe import probe_platform
from penstock.quantization.backends.linear_fp8 import (
    STREAMED_ROWS,
    Fp8Weight,
    LinearFp8,
    product_by_torch,
)
from penstock.quantization.linear import LinearSpec
from penstock.quantization.schemes import SCHEMES, WeightRecord
from penstock.quantization.select import choose_linear

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA device", allow_module_level=True)

from penstock.kernels.triton.linear import FLOAT8_TILINGS, DotTiling, arrivals_on
from penstock.kernels.triton.linear_fp8 import (
    ProductTiling,
    has_float8,
    linear_fp8,
    linear_fp8_dynamic,
    product_fp8,
    quantize_fp8,
)

CARD = torch.device("cuda", 0)
SHAPES = ((6144, 4096), (4096, 4096), (4096, 14336), (576, 640), (1000, 1536))
GROUPS = (0, 128)
FLOAT8 = has_float8(CARD)
WAYS = ("asm", "bits", *(("cast",) if FLOAT8 else ()))
PLATFORM = replace(probe_platform(), name="cuda")
needs_float8 = pytest.mark.skipif(not FLOAT8, reason="needs matrix units for float8")


def _values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def _weight(outs: int, columns: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = torch.logspace(-1, 1, outs, device=CARD)[:, None]
    return quantize_fp8(_values(outs, columns, seed=1, dtype=torch.float32) * sizes, group)


def _check(
    found: torch.Tensor, wanted: torch.Tensor, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> None:
    """Tolerances are for results of unit size; each of these has its own, that of its row of x and of the weight."""
    relative, absolute = OPS["linear_fp8"].tolerance[str(found.dtype).removeprefix("torch.")]
    size = x.float().norm(dim=1)[:, None] * reference.dequantize_fp8(codes, scales).norm(dim=1)[None, :]
    size /= x.shape[1] ** 0.5
    torch.testing.assert_close(found.float() / size, wanted.float() / size, rtol=relative, atol=absolute)


@pytest.fixture(autouse=True)
def _float32_is_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("group", [0, 128])
@pytest.mark.parametrize("how", ["bits", *(["cast"] if FLOAT8 else [])])
def test_quantized_rows_are_the_bits_of_the_reference(group: int, how: str) -> None:
    x = _values(300, 4096, dtype=torch.float32) * torch.logspace(-12, 9, 300, device=CARD)[:, None]
    x[2] = 0
    x[3, 5], x[4, 7] = float("nan"), float("inf")
    for some in (x, x.bfloat16()):
        wanted, found = reference.quantize_fp8(some, group), quantize_fp8(some, group, how=how)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("way", WAYS)
def test_every_code_is_its_value(way: str) -> None:
    """One column of the weight has each code but NaN's; x picks it out."""
    codes = torch.zeros(256, 128, dtype=torch.uint8, device=CARD)
    every = torch.arange(256, dtype=torch.uint8, device=CARD)
    codes[:, 5] = torch.where((every & 127) == 127, 0, every)
    x = torch.zeros(1, 128, dtype=torch.bfloat16, device=CARD)
    x[0, 5] = 1
    found = linear_fp8(x, codes, torch.ones(256, 1, device=CARD), widen=way)
    assert torch.equal(found[0].float(), codes[:, 5].view(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_few_rows(group: int, shape: tuple[int, int], way: str) -> None:
    codes, scales = _weight(*shape, group)
    bias = _values(shape[0], seed=2)
    for rows in (1, 8, 17, 33, 64, 100, 300):
        x = _values(rows, shape[1])
        for b in (None, bias):
            found = linear_fp8(x, codes, scales, b, widen=way)
            _check(found, reference.linear_fp8(x, codes, scales, b), x, codes, scales)
            assert torch.equal(found, linear_fp8(x, codes, scales, b, widen=way)), rows
    assert not arrivals_on(CARD).any()


def test_few_rows_in_float16_and_other_tilings() -> None:
    for group in GROUPS:
        codes, scales = _weight(1000, 1536, group)
        x = _values(20, 1536, dtype=torch.float16)
        _check(linear_fp8(x, codes, scales), reference.linear_fp8(x, codes, scales), x, codes, scales)
        for tiling in (DotTiling(64, 64, 2, 4, 4), DotTiling(128, 128, 1, 8, 4)):
            x = _values(20, 1536)
            _check(
                linear_fp8(x, codes, scales, tiling=tiling), reference.linear_fp8(x, codes, scales), x, codes, scales
            )


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("widen", ["bits", *([""] if FLOAT8 else [])])
def test_many_rows(group: int, shape: tuple[int, int], widen: str) -> None:
    codes, scales = _weight(*shape, group)
    bias = _values(shape[0], seed=2)
    tiling = ProductTiling(64, 64, 32, 4, 3) if widen else None
    for rows in (1, 65, 130, 513):
        x = _values(rows, shape[1])
        for b in (None, bias):
            found = linear_fp8_dynamic(x, codes, scales, b, tiling=tiling, widen=widen)
            _check(found, reference.linear_fp8_dynamic(x, codes, scales, b), x, codes, scales)
            assert torch.equal(found, linear_fp8_dynamic(x, codes, scales, b, tiling=tiling, widen=widen))


@needs_float8
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_few_rows_of_float8(group: int, shape: tuple[int, int]) -> None:
    codes, scales = _weight(*shape, group)
    bias = _values(shape[0], seed=2)
    for rows in (1, 8, 17, 33, 64, 128):
        x = _values(rows, shape[1]) * torch.logspace(-1, 1, rows, device=CARD)[:, None].bfloat16()
        tiling = FLOAT8_TILINGS[max(16, 1 << (rows - 1).bit_length())]
        for b in (None, bias):
            found = linear_fp8_dynamic(x, codes, scales, b, tiling=tiling)
            _check(found, reference.linear_fp8_dynamic(x, codes, scales, b), x, codes, scales)
            assert torch.equal(found, linear_fp8_dynamic(x, codes, scales, b, tiling=tiling)), rows
    assert not arrivals_on(CARD).any()


@needs_float8
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_multiplies_the_same(shape: tuple[int, int]) -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    codes, scales = _weight(*shape, 0)
    if shape[0] % 16:
        codes, scales = codes[: shape[0] // 16 * 16], scales[: shape[0] // 16 * 16]
    bias, x = _values(codes.shape[0], seed=2), _values(130, shape[1])
    for b in (None, bias):
        wanted = reference.linear_fp8_dynamic(x, codes, scales, b)
        _check(product_by_torch(*quantize_fp8(x), codes, scales, b), wanted, x, codes, scales)
        _check(product_fp8(*quantize_fp8(x), codes, scales, b, torch.empty_like(wanted)), wanted, x, codes, scales)


def _prepared(scheme: str, outs: int, columns: int, dtype: str) -> tuple[LinearFp8, Fp8Weight, WeightRecord]:
    spec = LinearSpec(scheme=SCHEMES[scheme], out_features=outs, in_features=columns, dtype=dtype, platform=PLATFORM)
    method, _ = choose_linear(spec)
    assert isinstance(method, LinearFp8)
    codes, scales = _weight(outs, columns, SCHEMES[scheme].scales[0].group_size)
    record = WeightRecord(SCHEMES[scheme], (outs, columns), {"codes": codes.cpu(), "scales": scales.cpu()})
    prepared = method.prepare(record, spec)
    assert prepared.nbytes == method.prepared_bytes(spec)
    return method, prepared, record


@pytest.mark.parametrize("scheme", ["fp8_row", "fp8_row_only", "fp8_block"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("outs", [1000, 1024])
def test_all_rungs_are_near_the_dense_product(scheme: str, dtype: str, outs: int) -> None:
    method, prepared, _ = _prepared(scheme, outs, 1536, dtype)
    parts, bias = prepared.record.parts, _values(outs, seed=2, dtype=getattr(torch, dtype))
    ends = STREAMED_ROWS.values()
    for rows in (1, *ends, *(end + 1 for end in ends), 100, 300):
        x = _values(rows, 1536, dtype=getattr(torch, dtype))
        dense = reference.linear_fp8(x.float(), parts["codes"], parts["scales"], bias.float())
        rounds = prepared.many != "linear_fp8"
        wanted = reference.linear_fp8_dynamic(x, parts["codes"], parts["scales"], bias) if rounds else dense
        wide = torch.zeros(rows, outs + 10, dtype=x.dtype, device=CARD)
        _check(method.apply(prepared, x, bias), wanted.to(x.dtype), x, parts["codes"], parts["scales"])
        _check(
            method.apply(prepared, x, bias, wide[:, 5 : 5 + outs]),
            wanted.to(x.dtype),
            x,
            parts["codes"],
            parts["scales"],
        )
        assert wide[:, :5].eq(0).all()
        assert wide[:, 5 + outs :].eq(0).all()
        error = (method.apply(prepared, x, bias).float() - dense).norm() / dense.norm()
        assert error < (0.04 if rounds else 0.004)


@pytest.mark.parametrize("scheme", ["fp8_row", "fp8_block"])
def test_the_code_of_nan_is_nan_in_every_rung(scheme: str) -> None:
    method, _, record = _prepared(scheme, 128, 256, "bfloat16")
    record.parts["codes"][7, 200] = 0x7F
    spec = LinearSpec(scheme=record.scheme, out_features=128, in_features=256, dtype="bfloat16", platform=PLATFORM)
    prepared = method.prepare(record, spec)
    for rows in (1, 300):
        found = method.apply(prepared, _values(rows, 256), None)
        assert found.isnan().all(dim=0).nonzero().flatten().tolist() == [7]
        assert found.isnan().sum() == rows


@pytest.mark.parametrize("scheme", ["fp8_row", "fp8_row_only", "fp8_block"])
@pytest.mark.parametrize("rows", [4, 300])
def test_a_captured_call_reads_its_inputs_anew(scheme: str, rows: int) -> None:
    method, prepared, _ = _prepared(scheme, 1024, 512, "bfloat16")
    x = _values(rows, 512)
    method.apply(prepared, x, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = method.apply(prepared, x, None)
    for seed in range(10):
        x.copy_(_values(rows, 512, seed=seed))
        graph.replay()
        assert torch.equal(captured, method.apply(prepared, x, None))
