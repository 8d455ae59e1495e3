"""Native linear layers with dense weights, on every instruction set that this machine has and for every type of weight:
against the references over odd shapes, and the same bits for a row alone and in any batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from penstock.kernels import reference
from penstock.kernels.native import BF16_ISA_NEEDS, ISA_MACHINES
from penstock.kernels.native.extension import ISAS, extension
from penstock.kernels.native.linear_dense import (
    FORMATS,
    PackedDense,
    embedding_dense,
    linear_dense,
    linear_dense_argmax,
    pack_dense,
    packed_dense_bytes,
)
from penstock.kernels.native.memory import Arena, results_in
from penstock.kernels.ops import OPS
from penstock.platforms.probe import probe_platform

HERE = probe_platform()
ROWS = (0, 1, 2, 4, 7, 9, 12, 13, 33)
SHAPES = ((1, 1), (7, 31), (33, 33), (96, 64), (70, 576), (259, 65), (40, 1536))  # outs, columns
NAN = float("nan")


def _rows() -> Iterator[Any]:
    for isa, needs in BF16_ISA_NEEDS.items():
        missing = [name for name in needs if name not in HERE.instruction_sets]
        reason = HERE.extension_missing or ", ".join(missing)
        if not reason and ISA_MACHINES.get(isa, HERE.machine) != HERE.machine:
            reason = f"needs a {ISA_MACHINES[isa]} processor"
        if reason:
            yield pytest.param(ISAS[isa], None, id=isa, marks=pytest.mark.skip(reason=reason))
            continue
        for dtype in (torch.bfloat16,) if isa.endswith("_bf16") else FORMATS:
            yield pytest.param(ISAS[isa], dtype, id=f"{isa}-{str(dtype).removeprefix('torch.')}")


EVERY = pytest.mark.parametrize(("isa", "dtype"), list(_rows()))


def _values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _strided(rows: int, cols: int) -> torch.Tensor:
    return _values(rows, cols + 13)[:, :cols]


def _truth(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    of = OPS["linear_bf16"].reference if weight.dtype is torch.bfloat16 else OPS["linear"].reference
    return of(x, weight, bias)


@EVERY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_agrees_with_its_reference(isa: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weight, bias = _values(*shape, seed=1).to(dtype), _values(shape[0], seed=2)
    packed = pack_dense(isa, weight)
    assert packed.nbytes == packed_dense_bytes(isa, *shape, dtype)
    relative, absolute = OPS["linear"].tolerance["float32"]
    for rows in ROWS:
        x = _strided(rows, shape[1])
        b = bias if rows % 2 else None
        wanted = _truth(x, weight, b)
        scale = max(1.0, wanted.abs().max().item()) if rows else 1.0
        torch.testing.assert_close(linear_dense(isa, x, packed, b), wanted, rtol=relative, atol=absolute * scale)


@EVERY
def test_a_row_is_the_same_bits_alone_and_in_every_batch(isa: int, dtype: torch.dtype) -> None:
    weight = pack_dense(isa, _values(75, 130, seed=1).to(dtype))
    x = _values(1500, 130)  # several panels of rows
    alone = torch.cat([linear_dense(isa, row[None], weight) for row in x])
    for rows in (*range(1, 70), 257, 1500):
        for first in {0, 1500 - rows}:
            assert torch.equal(linear_dense(isa, x[first : first + rows], weight), alone[first : first + rows]), rows
    assert torch.equal(linear_dense_argmax(isa, x[:90], weight)[1], alone[:90].amax(1))


@EVERY
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_a_bit(isa: int, dtype: torch.dtype, threads: int) -> None:
    weight, x = pack_dense(isa, _values(1000, 96, seed=1).to(dtype)), _values(30, 96)
    wanted = linear_dense(isa, x, weight), *linear_dense_argmax(isa, x, weight)
    before = extension().num_threads()
    extension().set_num_threads(threads)
    try:
        for rows in (1, 3, 30):
            found = linear_dense(isa, x[:rows], weight), *linear_dense_argmax(isa, x[:rows], weight)
            assert all(torch.equal(f, w[:rows]) for f, w in zip(found, wanted, strict=True))
    finally:
        extension().set_num_threads(before)


@EVERY
def test_a_result_can_be_columns_of_a_wider_one(isa: int, dtype: torch.dtype) -> None:
    weight, x = pack_dense(isa, _values(37, 40, seed=1).to(dtype)), _values(9, 40)
    wide = torch.full((9, 60), 7.0)
    assert linear_dense(isa, x, weight, None, wide[:, 10:47]).data_ptr() == wide[:, 10:].data_ptr()
    assert torch.equal(wide[:, 10:47], linear_dense(isa, x, weight))
    assert (wide[:, :10] == 7).all()
    assert (wide[:, 47:] == 7).all()


@EVERY
@pytest.mark.parametrize("rows", [1, 8, 20])
def test_a_recorded_call_reads_its_inputs_anew(isa: int, dtype: torch.dtype, rows: int) -> None:
    weight, x, ids = pack_dense(isa, _values(700, 40, seed=1).to(dtype)), torch.zeros(rows, 40), torch.zeros(3).long()
    program = extension().Program()
    with results_in(Arena(torch.zeros(1 << 20, dtype=torch.uint8))):
        program.record()
        recorded = linear_dense(isa, x, weight), *linear_dense_argmax(isa, x, weight), embedding_dense(isa, weight, ids)
        program.stop_recording()
    for seed in (1, 2):
        x.copy_(_values(rows, 40, seed=seed))
        ids.copy_(torch.tensor([seed, 0, 699]))
        program.run()
        wanted = linear_dense(isa, x, weight), *linear_dense_argmax(isa, x, weight), embedding_dense(isa, weight, ids)
        assert all(torch.equal(found, value) for found, value in zip(recorded, wanted, strict=True))


@EVERY
def test_argmax_is_the_first_of_the_largest(isa: int, dtype: torch.dtype) -> None:
    for outs, cols in ((1, 3), (31, 8), (2000, 40)):
        matrix = _values(outs, cols, seed=3).round().to(dtype)  # small integers: many outputs are equal, sums exact
        weight = pack_dense(isa, matrix)
        for rows in (0, 1, 2, 6, 40):
            x = _values(rows, cols).round()
            ids, values = linear_dense_argmax(isa, x, weight)
            wanted_ids, wanted_values = reference.argmax(_truth(x, matrix, None))
            assert torch.equal(ids, wanted_ids)
            assert torch.equal(values, wanted_values)


@EVERY
@pytest.mark.parametrize("place", [0, 17, 999])
def test_argmax_says_nan_where_a_logit_is(isa: int, dtype: torch.dtype, place: int) -> None:
    matrix = _values(1000, 16)
    matrix[place, 3] = NAN
    matrix[(place + 1) % 1000, 3] = float("inf")
    ids, values = linear_dense_argmax(isa, _values(5, 16).abs(), pack_dense(isa, matrix.to(dtype)))
    assert values.isnan().all()
    assert ids.tolist() == [place] * 5
    nothing = torch.full((9, 1), float("-inf"))
    ids, values = linear_dense_argmax(isa, torch.ones(2, 1), pack_dense(isa, nothing.to(dtype)))
    assert ids.tolist() == [0, 0]
    assert values.isneginf().all()


@EVERY
def test_special_values_of_weights_are_kept(isa: int, dtype: torch.dtype) -> None:
    """A weight comes back from the embedding as it was: subnormals, infinities, signed zeros."""
    least = torch.finfo(dtype).smallest_normal
    special = [0.0, -0.0, least / 4, -least / 2, least, torch.finfo(dtype).max, float("inf"), float("-inf"), NAN]
    matrix = torch.tensor([special, special[::-1]], dtype=torch.float64).to(dtype)
    found = embedding_dense(isa, pack_dense(isa, matrix), torch.tensor([1, 0]))
    torch.testing.assert_close(found, matrix[[1, 0]].float(), rtol=0, atol=0, equal_nan=True)
    if dtype is torch.float16:  # in bfloat16 dot products subnormals count as zero
        one = linear_dense(isa, torch.ones(1, 1), pack_dense(isa, matrix[:, 2:3].contiguous()))
        torch.testing.assert_close(one, matrix[:, 2:3].float().T, rtol=0, atol=0)


@EVERY
def test_embedding_gives_the_rows_of_the_weight(isa: int, dtype: torch.dtype) -> None:
    for outs, cols in ((1, 1), (50, 33), (70, 576)):
        matrix = _values(outs, cols).to(dtype)
        weight = pack_dense(isa, matrix)
        for n in (0, 1, 9):
            ids = torch.randint(0, outs, (n,), generator=torch.Generator().manual_seed(n))
            assert torch.equal(embedding_dense(isa, weight, ids), reference.embedding(matrix, ids).float())
        assert embedding_dense(isa, weight, torch.tensor([outs, -1])).isnan().all()


@EVERY
def test_a_strided_weight_is_packed_as_a_contiguous_one(isa: int, dtype: torch.dtype) -> None:
    matrix = _strided(37, 21).to(dtype)
    assert torch.equal(pack_dense(isa, matrix).data, pack_dense(isa, matrix.contiguous()).data)


def _baseline() -> PackedDense:
    if HERE.extension_missing:
        pytest.skip(HERE.extension_missing)
    return pack_dense(0, _values(4, 6))


def test_what_does_not_fit_is_refused() -> None:
    weight = _baseline()
    for wrong, error in (
        (torch.zeros(2, 5), ValueError),
        (torch.zeros(6), ValueError),
        (torch.zeros(6, 2).T, ValueError),
        (torch.zeros(2, 6, dtype=torch.bfloat16), TypeError),
    ):
        with pytest.raises(error):
            linear_dense(0, wrong, weight)
    with pytest.raises(ValueError, match="bias of 4"):
        linear_dense(0, torch.zeros(2, 6), weight, torch.zeros(6))
    for out, error in ((torch.zeros(2, 5), ValueError), (torch.zeros(4, 2).T, ValueError)):
        with pytest.raises(error):
            linear_dense(0, torch.zeros(2, 6), weight, None, out)
    with pytest.raises(ValueError, match="packed for"):
        linear_dense(1, torch.zeros(2, 6), weight)
