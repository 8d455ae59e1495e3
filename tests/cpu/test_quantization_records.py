"""Packed codes, codebooks and row operations, each against its plainest possible definition."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.quantization import dequantize
from penstock.quantization.codebooks import codebook
from penstock.quantization.dequantize import reference_dequantize, unpack_bits
from penstock.quantization.formats.gguf import convert_gguf
from penstock.quantization.records import cut_rows, take_rows
from penstock.quantization.schemes import SCHEMES, code_planes, dense_record, record_bytes


@given(st.binary(min_size=1, max_size=64), st.sampled_from([1, 2, 4]))
def test_codes_lie_in_a_byte_from_the_lowest_bits_up(data, bits):
    packed = torch.tensor(list(data), dtype=torch.uint8)
    number = int.from_bytes(data, "little")
    expected = [(number >> (bits * i)) & ((1 << bits) - 1) for i in range(len(data) * 8 // bits)]
    assert unpack_bits(packed, bits).tolist() == expected
    assert unpack_bits(packed.view(1, -1), bits).tolist() == [expected]


def test_eight_bit_codes_are_signed_and_need_no_unpacking():
    packed = torch.tensor([-128, -1, 0, 127], dtype=torch.int8)
    assert unpack_bits(packed, 8) is packed


def test_codebook_equals_the_gguf_package():
    gguf.quants.IQ2_XXS.init_grid()
    grid = torch.from_numpy(gguf.quants.IQ2_XXS.grid.reshape(256, 8))
    assert torch.equal(codebook("iq2_xxs") * 8, grid)


def quantized(rows: int, columns: int = 256, kind: str = "Q4_1"):
    values = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).reshape(-1)
    return convert_gguf(kind, data, (rows, columns))


def test_work_in_chunks_changes_nothing(monkeypatch):
    record = quantized(70)
    whole = reference_dequantize(record)
    for size in (1, 256 * 3, 256 * 70):
        monkeypatch.setattr(dequantize, "_CHUNK_VALUES", size)
        assert torch.equal(reference_dequantize(record), whole)


@given(st.lists(st.integers(0, 19), max_size=12))
def test_taking_rows_then_dequantizing_is_dequantizing_then_taking_rows(rows):
    record, index = quantized(20), torch.tensor(rows, dtype=torch.int64)
    taken = take_rows(record, index)
    assert taken.shape == (len(rows), 256)
    assert torch.equal(reference_dequantize(taken), reference_dequantize(record)[index])


def test_cut_rows_are_views_within_bounds():
    record = quantized(20)
    cut = cut_rows(record, 4, 8)
    assert cut.shape == (4, 256)
    assert cut.parts["codes"].data_ptr() == record.parts["codes"][4:].data_ptr()
    with pytest.raises(ValueError, match="rows 4 to 21 of a weight with 20"):
        cut_rows(record, 4, 21)


def test_dense_weights_are_not_copied_without_need():
    values = torch.randn(3, 4)
    assert reference_dequantize(dense_record(values)).data_ptr() == values.data_ptr()
    assert reference_dequantize(dense_record(values), torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.kind != "dense"])
def test_sizes_of_a_scheme_add_up(name):
    """Stored bits per weight: the codes, plus every scale level and minimum over the weights it covers."""
    scheme = SCHEMES[name]
    levels = sum((level.bits if level.kind == "float" else 8) / (level.group_size or 512) for level in scheme.scales)
    per_weight = scheme.code_bits + levels * (2 if scheme.minimum == "min" else 1)
    assert record_bytes(scheme, (7, 512)) * 8 == 7 * 512 * per_weight
    assert 512 % scheme.column_multiple == 0
    assert (scheme.zero_point != 0) == (scheme.minimum == "offset")
    if scheme.kind == "affine":
        assert sum(code_planes(scheme)) == scheme.code_bits
