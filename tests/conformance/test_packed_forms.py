"""Every quantized scheme in the one form that native kernels multiply: the same values, bit by bit."""

import numpy as np
import pytest
import torch

from penstock.quantization.dequantize import reference_dequantize
from penstock.quantization.formats.gguf import GGUF_TYPES, convert_gguf
from penstock.quantization.packed import CODE_BITS, packed_form, packed_parts

ROWS, COLUMNS = 33, 768
QUANTIZED = [name for name, kind in GGUF_TYPES.items() if kind.take_apart is not None]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", QUANTIZED)
def test_values_are_those_of_the_record(name, seed):
    """Random bytes: every code, every subscale, and float16 scales of any size, infinities and NaN among them."""
    block = GGUF_TYPES[name].block
    data = np.random.default_rng(seed).integers(0, 256, ROWS * COLUMNS // block.columns * block.nbytes, dtype=np.uint8)
    record = convert_gguf(name, data, (ROWS, COLUMNS))
    form, parts = packed_form(record.scheme), packed_parts(record)
    assert form.code_bits in CODE_BITS
    assert (parts.codes.dtype, tuple(parts.codes.shape)) == (torch.uint8, (ROWS, COLUMNS))
    assert int(parts.codes.max()) < 2**form.code_bits
    assert form.has_min == (parts.mins is not None)
    for levels in (parts.scales, parts.mins):
        if levels is not None:
            assert (tuple(levels.shape), levels.dtype.itemsize * 8) == (
                (ROWS, COLUMNS // form.group_size),
                form.scale_bits,
            )
    values = (parts.codes.float() - form.zero_point).view(ROWS, -1, form.group_size) * parts.scales.float()[..., None]
    if parts.mins is not None:
        values += parts.mins.float()[..., None]
    torch.testing.assert_close(values.view(ROWS, COLUMNS), reference_dequantize(record), rtol=0, atol=0, equal_nan=True)
