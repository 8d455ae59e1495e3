"""Every op of the list over its grid (``op_grids``): odd sizes, one row, no rows, strides; implementations against
references. An implementation runs in the types that it claims; one that this machine cannot run is skipped once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from op_grids import discover
from op_grids.cells import Cell, values

from penstock.errors import NoBackendError
from penstock.kernels.activations import QuantizedRows
from penstock.kernels.ops import OPS, Implementation, Op, OpSpec, choose_op
from penstock.platforms.probe import probe_platform
from penstock.types.facts import PlatformFacts

GRIDS, TRUTHS = discover()
HERE = probe_platform()
RECORDED = PlatformFacts(name="cpu", machine="x86_64", instruction_sets=("avx2",))


def _claimed(op: Op, implementation: Implementation) -> tuple[str, ...]:
    return tuple(dtype for dtype in op.tolerance if not implementation.dtypes or dtype in implementation.dtypes)


def _rows() -> Iterator[Any]:
    for op in OPS.values():
        for implementation in op.implementations:
            name = f"{op.name}-{implementation.name}"
            verdict = implementation.can_run(OpSpec(dtype=_claimed(op, implementation)[0], platform=HERE))
            if not verdict.ok:
                refused = pytest.mark.skip(reason="; ".join(verdict.reasons))
                yield pytest.param(op, implementation, None, "", id=name, marks=refused)
                continue
            for cell in GRIDS[op.name]():
                for dtype in _claimed(op, implementation):
                    yield pytest.param(op, implementation, cell, dtype, id=f"{name}-{cell.name}-{dtype}")


def _tensors(arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for argument in arguments:
        if isinstance(argument, QuantizedRows):
            found += (argument.codes, argument.scales, argument.zeros, argument.sums)
        elif isinstance(argument, torch.Tensor):
            found.append(argument)
    return found


@pytest.mark.parametrize(("op", "implementation", "cell", "dtype"), list(_rows()))
def test_implementation_agrees_with_its_reference(
    op: Op, implementation: Implementation, cell: Cell, dtype: str
) -> None:
    arguments = cell.make(getattr(torch, dtype))
    before = [tensor.clone() for tensor in _tensors(arguments)]
    wanted = op.reference(*arguments)
    found = implementation.function(*arguments)
    cell.compare(found, wanted, op.tolerance[dtype])
    for kept, tensor in zip(before, _tensors(arguments), strict=True):
        torch.testing.assert_close(tensor, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", TRUTHS)
def test_reference_agrees_with_torch(name: str) -> None:
    for cell in GRIDS[name]():
        arguments = cell.make(torch.float32)
        cell.compare(OPS[name].reference(*arguments), TRUTHS[name](*arguments), (1e-5, 1e-5))


def test_rotary_reference_is_a_complex_rotation() -> None:
    x, angles = values(6, 2, 8, dtype=torch.float32), torch.rand(6, 1, 4) * 6
    turned = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.polar(torch.ones_like(angles), angles)
    cos, sin = angles.cos(), angles.sin()
    found = OPS["rotary"].reference(x, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
    torch.testing.assert_close(found, torch.cat((turned.real, turned.imag), -1))


def test_linear_and_embedding_references() -> None:
    x, weight, bias = (values(*shape, dtype=torch.float32, seed=i) for i, shape in enumerate(((5, 7), (3, 7), (3,))))
    torch.testing.assert_close(OPS["linear"].reference(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
    ids = torch.tensor([2, 0, 2])
    torch.testing.assert_close(OPS["embedding"].reference(weight, ids), weight[ids], rtol=0, atol=0)
    assert OPS["embedding"].reference(weight, ids[:0]).shape == (0, 7)


def test_every_row_has_a_grid_or_names_its_table() -> None:
    for op in OPS.values():
        assert bool(op.implementations) != bool(op.selected_in), op.name
        assert (op.name in GRIDS) == bool(op.implementations), op.name
        for implementation in op.implementations:
            assert _claimed(op, implementation), (op.name, implementation.name)
            assert set(implementation.dtypes) <= set(op.tolerance), (op.name, implementation.name)


def test_an_implementation_says_every_reason_against_it() -> None:
    picky = Implementation("picky", torch.abs, dtypes=("float16",), platforms=("cuda",), instruction_sets=("amx",))
    verdict = picky.can_run(OpSpec(dtype="float32", platform=RECORDED))
    assert len(verdict.reasons) == 3
    assert "amx" in verdict.reasons[2]


def test_a_forced_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(NoBackendError, match="no candidate named 'magic'"):
        choose_op("rms_norm", OpSpec(dtype="float32", platform=RECORDED), "magic")
