"""Every GGUF tensor type we read, held to the gguf package's own dequantization, bit by bit.

Rows of the table: ``GGUF_TYPES``. A type that is added there is tested here without another line.
"""

import gguf
import numpy as np
import pytest
import torch

from penstock.quantization.dequantize import reference_dequantize
from penstock.quantization.formats.gguf import GGUF_TYPES, convert_gguf
from penstock.quantization.records import cut_rows, take_rows
from penstock.quantization.schemes import SCHEMES, part_layout, record_bytes

ROWS, COLUMNS = 33, 768
QUANTIZED = [name for name, kind in GGUF_TYPES.items() if kind.take_apart is not None]
READABLE = {
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS",
}  # fmt: skip
# Where the float16 scales (and minima) of a block lie, to set them to extremes.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ2_XXS": (0,),
}  # fmt: skip
EXTREMES = np.array([0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 1.0, -1.0, 65504.0, -65504.0, np.inf, -np.inf, np.nan], np.float16)


def random_bytes(name: str, seed: int) -> np.ndarray:
    block = GGUF_TYPES[name].block
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, ROWS * COLUMNS // block.columns * block.nbytes, dtype=np.uint8)


def expected(name: str, data: np.ndarray) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[name]
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(data.reshape(ROWS, -1), kind).reshape(ROWS, COLUMNS).astype(np.float32)


def assert_same_bits(found: torch.Tensor, wanted: np.ndarray) -> None:
    """Equal bit patterns, signed zeros and infinities included; only the payload of a NaN is free."""
    bits = found.numpy().view(np.uint32) == wanted.view(np.uint32)
    both_nan = np.isnan(found.numpy()) & np.isnan(wanted)
    assert (bits | both_nan).all()


def test_table_holds_what_is_promised():
    assert set(GGUF_TYPES) == READABLE
    assert {kind.scheme.name for kind in GGUF_TYPES.values()} == {
        name for name, scheme in SCHEMES.items() if scheme.kind != "float"
    }
    assert set(HALVES) == set(QUANTIZED)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", GGUF_TYPES)
def test_random_bytes(name, seed):
    data = random_bytes(name, seed)
    found = reference_dequantize(convert_gguf(name, data.copy(), (ROWS, COLUMNS)))
    assert_same_bits(found, expected(name, data))


@pytest.mark.parametrize("name", QUANTIZED)
def test_extreme_scales(name):
    data = random_bytes(name, 7)
    blocks = data.reshape(-1, GGUF_TYPES[name].block.nbytes)
    for place, start in enumerate(HALVES[name]):
        values = np.roll(np.resize(EXTREMES, len(blocks)), 5 * place)
        blocks[:, start : start + 2] = values.view(np.uint8).reshape(-1, 2)
    found = reference_dequantize(convert_gguf(name, data.copy(), (ROWS, COLUMNS)))
    assert_same_bits(found, expected(name, data))


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_values_quantized_by_the_gguf_package(name):
    values = np.random.default_rng(1).normal(0, 0.02, (ROWS, COLUMNS)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[name]
    try:
        data = np.ascontiguousarray(gguf.quants.quantize(values, kind)).reshape(-1).view(np.uint8)
    except NotImplementedError:
        pytest.skip("the gguf package cannot write this type; random bytes cover it")
    found = reference_dequantize(convert_gguf(name, data.copy(), (ROWS, COLUMNS)))
    assert_same_bits(found, expected(name, data))
    assert np.abs(found.numpy() - values).max() < 0.02  # it is the weight, not only the same as the package


@pytest.mark.parametrize("name", QUANTIZED)
def test_parts_are_those_of_the_scheme(name):
    record = convert_gguf(name, random_bytes(name, 2), (ROWS, COLUMNS))
    layout = {part: (values.dtype, values.shape[1]) for part, values in record.parts.items()}
    assert layout == part_layout(record.scheme, COLUMNS)
    assert all(values.shape[0] == ROWS and values.is_contiguous() for values in record.parts.values())
    assert record.nbytes == record_bytes(record.scheme, (ROWS, COLUMNS))


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_rows_can_be_cut_and_permuted_while_quantized(name):
    data = random_bytes(name, 3)
    record = convert_gguf(name, data.copy(), (ROWS, COLUMNS))
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0))
    wanted = expected(name, data)
    assert_same_bits(reference_dequantize(take_rows(record, order)), wanted[order.numpy()])
    assert_same_bits(reference_dequantize(cut_rows(record, 5, 9)), wanted[5:9])


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_stack_of_matrices(name):
    data = random_bytes(name, 4)
    record = convert_gguf(name, data.copy(), (3, ROWS // 3, COLUMNS))
    assert_same_bits(reference_dequantize(record).view(ROWS, COLUMNS), expected(name, data))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_smaller_types_are_rounded_from_float32(dtype):
    record = convert_gguf("Q4_K", random_bytes("Q4_K", 5), (ROWS, COLUMNS))
    found, wanted = reference_dequantize(record, dtype), reference_dequantize(record).to(dtype)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_plain_values_stay_views():
    data = random_bytes("F32", 6)
    record = convert_gguf("F32", data, (ROWS, COLUMNS))
    assert record.parts["values"].data_ptr() == data.ctypes.data


def test_columns_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="256 columns"):
        convert_gguf("Q4_K", np.zeros(144, np.uint8), (1, 128))
