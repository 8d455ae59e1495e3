"""Native linear layers with quantized weights, on every instruction set that this machine has and for every form of
weight: against the references over odd shapes, and the same bits for a row alone and in any batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from penstock.kernels import reference
from penstock.kernels.activations import QuantizedRows
from penstock.kernels.native import ISA_MACHINES, ISA_NEEDS
from penstock.kernels.native.extension import ISAS, extension
from penstock.kernels.native.linear import (
    CODE_BITS,
    PackedWeight,
    embedding_quantized,
    linear_quantized,
    linear_quantized_argmax,
    pack_linear,
    packed_bytes,
)
from penstock.kernels.ops import OPS
from penstock.platforms.probe import probe_platform

HERE = probe_platform()
ROWS = (0, 1, 2, 3, 7, 33, 129)
OUTS = (1, 15, 16, 17, 200)


@dataclass(frozen=True)
class Form:
    """How a weight is quantized; ``group`` 0 is the whole row."""

    bits: int
    group: int
    scales: torch.dtype = torch.float16
    has_min: bool = False
    zero_point: int = 0

    def __str__(self) -> str:
        tail = ("-min" if self.has_min else "") + (f"-zero{self.zero_point}" if self.zero_point else "")
        return f"{self.bits}bit-{self.group or 'row'}-{str(self.scales).removeprefix('torch.')}{tail}"


FORMS = (
    *(Form(bits, 32, has_min=True) for bits in CODE_BITS),
    *(Form(bits, 32, zero_point=2 ** (bits - 1)) for bits in CODE_BITS),
    *(Form(bits, 16, torch.float32, zero_point=2 ** (bits - 1)) for bits in CODE_BITS),
    *(Form(4, group, torch.float32, has_min=True) for group in (16, 32, 64, 0)),
    *(Form(8, group, zero_point=128) for group in (64, 128, 0)),
    Form(6, 16, has_min=True, zero_point=3),
    Form(4, 128, zero_point=8),
)


def _isas() -> Iterator[Any]:
    for isa, needs in ISA_NEEDS.items():
        reason = HERE.extension_missing or ", ".join(name for name in needs if name not in HERE.instruction_sets)
        if not reason and ISA_MACHINES.get(isa, HERE.machine) != HERE.machine:
            reason = f"needs a {ISA_MACHINES[isa]} processor"
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        yield pytest.param(ISAS[isa], id=isa, marks=marks)


EVERY_ISA = pytest.mark.parametrize("isa", list(_isas()))
EVERY_FORM = pytest.mark.parametrize("form", FORMS, ids=str)

Plain = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, int]


def _plain(form: Form, outs: int, cols: int) -> Plain:
    """(codes, scales, mins, zero_point), codes of the whole range."""
    generator = torch.Generator().manual_seed(outs * 1000 + cols)
    groups = cols // (form.group or cols)
    codes = torch.randint(0, 2**form.bits, (outs, cols), generator=generator, dtype=torch.uint8)
    codes[-1] = 2**form.bits - 1  # the largest dots that there are
    scales, mins = (torch.randn(outs, groups, generator=generator).to(form.scales) for _ in range(2))
    return codes, scales, mins if form.has_min else None, form.zero_point


def _pack(isa: int, form: Form, plain: Plain) -> PackedWeight:
    return pack_linear(isa, *plain, form.bits)


def _rows(rows: int, cols: int) -> QuantizedRows:
    values = torch.randn(rows, cols, generator=torch.Generator().manual_seed(rows)) + 0.5
    if rows:
        values[-1] = -values[-1].abs()  # all codes on one side, the zero at the other end
    return reference.quantize_rows(values)


def _some(x: QuantizedRows, first: int, rows: int) -> QuantizedRows:
    here = slice(first, first + rows)
    return QuantizedRows(x.codes[here], x.scales[here], x.zeros[here], x.sums[here])


def _same_bits(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.equal(found.view(torch.int32), wanted.view(torch.int32))


def _assert_close(found: torch.Tensor, wanted: torch.Tensor, op: str) -> None:
    relative, absolute = OPS[op].tolerance["float32"]
    scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
    torch.testing.assert_close(found, wanted, rtol=relative, atol=absolute * scale)


@EVERY_ISA
@EVERY_FORM
def test_linear_agrees_with_its_reference(isa: int, form: Form) -> None:
    for outs, cols in zip(OUTS, (128, 256, 128, 384, 128), strict=True):
        plain = _plain(form, outs, cols)
        weight = _pack(isa, form, plain)
        assert weight.nbytes == packed_bytes(
            isa,
            outs,
            cols,
            code_bits=form.bits,
            group_size=form.group or cols,
            scale_bits=form.scales.itemsize * 8,
            has_min=form.has_min,
        )
        bias = torch.randn(outs, generator=torch.Generator().manual_seed(1)) * 100
        for rows in ROWS:
            x = _rows(rows, cols)
            for b in (None, bias):
                wanted = reference.linear_quantized(x, *plain, b)
                _assert_close(linear_quantized(isa, x, weight, b), wanted, "linear_quantized")


@EVERY_ISA
@EVERY_FORM
def test_a_row_is_the_same_bits_alone_and_in_every_batch(isa: int, form: Form) -> None:
    weight, x = _pack(isa, form, _plain(form, 41, 128)), _rows(300, 128)
    alone = torch.cat([linear_quantized(isa, _some(x, i, 1), weight) for i in range(300)])
    for rows in (*range(2, 27), 129, 300):
        for first in {0, 300 - rows}:
            found = linear_quantized(isa, _some(x, first, rows), weight)
            assert _same_bits(found, alone[first : first + rows]), (first, rows)
    assert torch.equal(linear_quantized_argmax(isa, _some(x, 3, 50), weight)[1], alone[3:53].amax(1))


@EVERY_ISA
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_a_bit(isa: int, threads: int) -> None:
    form = Form(4, 32, has_min=True)
    weight, x = _pack(isa, form, _plain(form, 1000, 64)), _rows(30, 64)
    wanted = linear_quantized(isa, x, weight), *linear_quantized_argmax(isa, x, weight)
    before = extension().num_threads()
    extension().set_num_threads(threads)
    try:
        for rows in (1, 3, 30):
            some = _some(x, 0, rows)
            found = linear_quantized(isa, some, weight), *linear_quantized_argmax(isa, some, weight)
            assert all(torch.equal(f, w[:rows]) for f, w in zip(found, wanted, strict=True))
    finally:
        extension().set_num_threads(before)


@EVERY_ISA
def test_results_go_where_they_are_wanted(isa: int) -> None:
    form = Form(8, 32, zero_point=128)
    weight, x = _pack(isa, form, _plain(form, 17, 64)), _rows(5, 64)
    whole = torch.full((5, 60), 7.0)
    linear_quantized(isa, x, weight, out=whole[:, 3:20])
    assert torch.equal(whole[:, 3:20], linear_quantized(isa, x, weight))
    assert (whole[:, :3] == 7).all()
    assert (whole[:, 20:] == 7).all()


@EVERY_ISA
@EVERY_FORM
def test_embedding_agrees_with_its_reference(isa: int, form: Form) -> None:
    plain = _plain(form, 37, 128)
    weight = _pack(isa, form, plain)
    for ids in ([], [36], [0, 36, 5, 5]):
        token_ids = torch.tensor(ids, dtype=torch.int64)
        wanted = reference.embedding_quantized(*plain, token_ids)
        _assert_close(embedding_quantized(isa, weight, token_ids), wanted, "embedding_quantized")
        _assert_close(embedding_quantized(isa, weight, token_ids, 3.0), wanted * 3.0, "embedding_quantized")
    unknown = embedding_quantized(isa, weight, torch.tensor([-1, 1, 37]))
    assert unknown.isnan().all(1).tolist() == [True, False, True]


@EVERY_ISA
def test_argmax_is_the_first_of_the_largest(isa: int) -> None:
    form = Form(4, 32, zero_point=8)
    for outs in (1, 31, 2000):
        codes, scales, _, _ = _plain(form, outs, 32)
        codes, scales = codes // 4 * 4, torch.ones_like(scales)
        codes[outs // 2 :] = codes[: outs - outs // 2].clone()  # every logit twice
        weight = pack_linear(isa, codes, scales, None, 8, 4)
        for rows in (0, 1, 2, 9, 40):
            x = _rows(rows, 32)
            ids, largest = linear_quantized_argmax(isa, x, weight)
            wanted_ids, wanted = reference.argmax(linear_quantized(isa, x, weight))
            assert torch.equal(ids, wanted_ids)
            assert torch.equal(largest, wanted)


@EVERY_ISA
def test_argmax_of_the_smallest_there_is(isa: int) -> None:
    codes = torch.ones(600, 32, dtype=torch.uint8)
    weight = pack_linear(isa, codes, torch.full((600, 1), float("-inf")), None, 0, 8)
    ids, largest = linear_quantized_argmax(isa, reference.quantize_rows(torch.ones(3, 32)), weight)
    assert ids.tolist() == [0] * 3
    assert largest.tolist() == [float("-inf")] * 3


@EVERY_ISA
@pytest.mark.parametrize("place", [0, 17, 300, 999])
def test_nan_is_said(isa: int, place: int) -> None:
    form = Form(8, 32, torch.float32, zero_point=128)
    codes, scales, _, zero_point = _plain(form, 1000, 64)
    scales[place, 1] = float("nan")
    weight = pack_linear(isa, codes, scales, None, zero_point, 8)
    x = _rows(9, 64)
    ids, largest = linear_quantized_argmax(isa, x, weight)
    assert largest.isnan().all()
    assert ids.tolist() == [place] * 9
    assert linear_quantized(isa, x, weight).isnan().sum(1).tolist() == [1] * 9


@EVERY_ISA
@EVERY_FORM
def test_a_block_that_is_not_finite_makes_its_row_nan_and_no_other(isa: int, form: Form) -> None:
    weight = _pack(isa, form, _plain(form, 20, 128))
    values = torch.randn(10, 128)
    clean = linear_quantized(isa, reference.quantize_rows(values), weight)
    values[4, 40] = float("inf")
    found = linear_quantized(isa, reference.quantize_rows(values), weight)
    assert found[4].isnan().all()
    others = [i for i in range(10) if i != 4]
    assert _same_bits(found[others], clean[others])


def test_forms_without_a_kernel_are_refused() -> None:
    if HERE.extension_missing:
        pytest.skip(HERE.extension_missing)
    codes, scales = torch.zeros(2, 96, dtype=torch.uint8), torch.ones(2, 3)
    for bad in (
        lambda: pack_linear(0, codes, scales, None, 0, 3),
        lambda: pack_linear(0, codes[:, :90], scales, None, 0, 4),
    ):
        with pytest.raises(ValueError, match=r"kernel|blocks"):
            bad()
    with pytest.raises(ValueError, match="groups have 16"):
        pack_linear(0, codes, torch.ones(2, 2), None, 0, 4)
    with pytest.raises(TypeError, match="float16"):
        pack_linear(0, codes, scales.to(torch.bfloat16), None, 0, 4)
    weight = pack_linear(0, codes, scales, None, 0, 4)
    with pytest.raises(ValueError, match="packed for instruction set 0"):
        linear_quantized(2, _rows(1, 96), weight)
    with pytest.raises(ValueError, match=r"\[rows, 96\]"):
        linear_quantized(0, _rows(1, 64), weight)
    with pytest.raises(ValueError, match="bias of 2"):
        linear_quantized(0, _rows(1, 96), weight, torch.zeros(3))
    with pytest.raises(ValueError, match="instruction set"):
        embedding_quantized(0, replace(weight, isa=1), torch.tensor([0]))
