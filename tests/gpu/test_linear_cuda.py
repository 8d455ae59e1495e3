"""Multiplications of few rows on the card, at the shapes of real models, against torch in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from penstock.kernels import reference
from penstock.kernels.ops import OPS
from penstock.platforms.probe import probe_platform
from penstock.quantization.backends.linear_cuda import MAX_SMALL_ROWS, LinearCuda
from penstock.quantization.backends.linear_dense import LinearDense
from penstock.quantization.dequantize import reference_dequantize
from penstock.quantization.formats.gguf import GGUF_TYPES, convert_gguf
from penstock.quantization.linear import LinearMethod, LinearSpec
from penstock.quantization.records import move_parts
from penstock.quantization.schemes import SCHEMES, dense_record

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA device", allow_module_level=True)

from penstock.kernels.triton.linear import (
    DotTiling,
    VectorTiling,
    arrivals_on,
    linear_skinny,
)

SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096), (576, 576), (1000, 1536))
PLATFORM = probe_platform()
HOPPER = torch.cuda.get_device_capability()[0] >= 9
WAYS = {
    "default": {},
    "wide": {"tiling": DotTiling(128, 128, 1, 8, 2)},  # with three stages 256 KiB of shared memory, more than there is
    **({"no early launch": {"pdl": False}} if HOPPER else {}),
}


def _values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def _check(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Tolerances are for results of unit size."""
    relative, absolute = OPS["linear"].tolerance[str(found.dtype).removeprefix("torch.")]
    scale = max(1.0, wanted.float().std().item())
    torch.testing.assert_close(found.float(), wanted.float(), rtol=relative, atol=absolute * scale)


@pytest.fixture(autouse=True)
def _float32_is_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_linear_agrees_with_float32_and_with_itself(shape: tuple[int, int], way: str) -> None:
    weight, bias = _values(*shape, seed=1), _values(shape[0], seed=2)
    for rows in (1, 2, 8, 17, 33, 64, 100):
        x = _values(rows, shape[1])
        for b in (None, bias):
            found = linear_skinny(x, weight, b, **WAYS[way])
            _check(found, reference.linear(x, weight, b))
            assert torch.equal(found, linear_skinny(x, weight, b, **WAYS[way])), rows
    assert not arrivals_on(weight.device).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vector_units(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        weight, bias = _values(*shape, seed=1, dtype=dtype), _values(shape[0], seed=2, dtype=dtype)
        x = _values(1, shape[1], dtype=dtype)
        _check(linear_skinny(x, weight, bias, tiling=VectorTiling(8, 512, 4)), reference.linear(x, weight, bias))


@pytest.mark.parametrize("method", [LinearCuda(), LinearDense()], ids=lambda method: method.name)
def test_a_weight_that_is_on_the_card_is_kept_and_one_that_is_not_is_moved(method: LinearMethod) -> None:
    spec = LinearSpec(
        scheme=SCHEMES["bf16"],
        out_features=256,
        in_features=512,
        dtype="bfloat16",
        platform=replace(PLATFORM, name="cuda"),
    )
    stored = _values(256, 512)
    assert method.prepare(dense_record(stored), spec).values.data_ptr() == stored.data_ptr()
    part = _values(300, 512)[20:276]
    for other in (part, stored.cpu(), stored.float(), stored.t().contiguous().t()):
        values = method.prepare(dense_record(other), spec).values
        assert (values.device, values.dtype, values.is_contiguous()) == (stored.device, stored.dtype, True)
        assert values.untyped_storage().nbytes() == values.nbytes
        assert values.data_ptr() != other.data_ptr()
        assert torch.equal(values, other.cuda().bfloat16())


@pytest.mark.parametrize("scheme", [name for name in GGUF_TYPES if SCHEMES[name.lower()].kind != "dense"])
def test_dequantizing_on_the_card_gives_the_bits_of_the_cpu(scheme: str) -> None:
    size = 96 * 512 // GGUF_TYPES[scheme].block.columns * GGUF_TYPES[scheme].block.nbytes
    record = convert_gguf(scheme, np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8), (96, 512))
    wanted = reference_dequantize(record)
    found = reference_dequantize(move_parts(record, torch.device("cuda", 0)))
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=0, equal_nan=True)


def test_both_rungs_give_the_same_result() -> None:
    spec = LinearSpec(
        scheme=SCHEMES["bf16"],
        out_features=1000,
        in_features=576,
        dtype="bfloat16",
        platform=replace(PLATFORM, name="cuda"),
    )
    method, weight, bias = LinearCuda(), _values(1000, 576, seed=1), _values(1000, seed=2)
    prepared = method.prepare(dense_record(weight), spec)
    for rows in (1, 2, MAX_SMALL_ROWS, MAX_SMALL_ROWS + 1, 300):
        x = _values(rows, 576)
        wanted = reference.linear(x, weight, bias)
        wide = torch.zeros(rows, 1010, dtype=torch.bfloat16, device="cuda")
        _check(method.apply(prepared, x, bias), wanted)
        _check(method.apply(prepared, x, bias, wide[:, 5:1005]), wanted)
        assert wide[:, :5].eq(0).all()
        assert wide[:, 1005:].eq(0).all()


@pytest.mark.parametrize("way", WAYS)
def test_a_captured_call_reads_its_inputs_anew(way: str) -> None:
    """Two in a row, the second on the result of the first, as in a model."""
    down, up = _values(576, 1536, seed=1) / 32, _values(1536, 576, seed=2) / 32
    x = _values(4, 576)

    def twice() -> torch.Tensor:
        return linear_skinny(linear_skinny(x, up, **WAYS[way]), down, **WAYS[way])

    twice()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = twice()
    for seed in range(20):
        x.copy_(_values(4, 576, seed=seed))
        graph.replay()
        assert torch.equal(captured, twice())
