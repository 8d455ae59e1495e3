"""Every op of the list over its grid (``op_grids``): odd sizes, one row, no rows, strides; implementations against
references. An implementation runs in the types that it claims; one that this machine cannot run is skipped once.

Triton's kernels run on a card where there is one, else in the interpreter, whose only type is float32. Torch calls run
on the card too, since they are what is left when Triton is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator
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
CARD = torch.cuda.is_available()
RECORDED = PlatformFacts(name="cpu", machine="x86_64", instruction_sets=("avx2",))


def _claimed(op: Op, implementation: Implementation) -> tuple[str, ...]:
    return tuple(dtype for dtype in op.tolerance if not implementation.dtypes or dtype in implementation.dtypes)


def _refused(implementation: Implementation, device: str, dtype: str) -> str:
    """Why the implementation cannot run on the device here; empty when it can."""
    if implementation.name == "triton" and device == "cpu":
        if importlib.util.find_spec("triton") is None:
            return "needs triton, which is not installed"
        interprets = os.environ.get("TRITON_INTERPRET") == "1"
        return "" if interprets else "needs a card that torch can use, or TRITON_INTERPRET=1"
    platform = dataclasses.replace(HERE, name=device)
    return "; ".join(implementation.can_run(OpSpec(dtype=dtype, platform=platform)).reasons)


def _devices(implementation: Implementation) -> tuple[str, ...]:
    if implementation.name == "triton":
        return ("cuda",) if CARD else ("cpu",)
    return ("cpu", "cuda") if CARD and not implementation.platforms else ("cpu",)


def _rows() -> Iterator[Any]:
    for op in OPS.values():
        for implementation in op.implementations:
            for device in _devices(implementation):
                yield from _rows_on(device, op, implementation)


def _rows_on(device: str, op: Op, implementation: Implementation) -> Iterator[Any]:
    name = f"{op.name}-{implementation.name}" + ("-cuda" if device == "cuda" else "")
    claimed = _claimed(op, implementation)
    interpreted = implementation.name == "triton" and device == "cpu"
    if reason := _refused(implementation, device, claimed[0]):
        refused = pytest.mark.skip(reason=reason)
        yield pytest.param(op, implementation, None, "", device, id=name, marks=refused)
        return
    for cell in GRIDS[op.name]():
        for dtype in claimed:
            if not interpreted or (cell.interpreted and dtype == "float32"):
                yield pytest.param(op, implementation, cell, dtype, device, id=f"{name}-{cell.name}-{dtype}")


def _moved(part: Any, device: str) -> Any:
    """The tensor with its strides on the device, and tuples and quantized rows of such."""
    if isinstance(part, tuple):
        return tuple(_moved(each, device) for each in part)
    if isinstance(part, QuantizedRows):
        return QuantizedRows(*(_moved(each, device) for each in (part.codes, part.scales, part.zeros, part.sums)))
    if not isinstance(part, torch.Tensor) or part.device.type == device:
        return part
    if part.is_contiguous():
        return part.to(device)
    spread = torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device=device)
    return spread.copy_(part)


def _outcome(op: Op, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """What the op answers, or what it wrote."""
    answer = function(*arguments)
    return tuple(arguments[place] for place in op.changes) if op.changes else answer


def _tensors(arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for argument in arguments:
        if isinstance(argument, QuantizedRows):
            found += (argument.codes, argument.scales, argument.zeros, argument.sums)
        elif isinstance(argument, torch.Tensor):
            found.append(argument)
    return found


# The interpreter computes in numpy, which warns where a float overflows as it should.
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize(("op", "implementation", "cell", "dtype", "device"), list(_rows()))
def test_implementation_agrees_with_its_reference(
    op: Op, implementation: Implementation, cell: Cell, dtype: str, device: str
) -> None:
    wanted = _outcome(op, op.reference, cell.make(getattr(torch, dtype)))
    arguments = _moved(cell.make(getattr(torch, dtype)), device)
    unchanged = _tensors(tuple(part for place, part in enumerate(arguments) if place not in op.changes))
    before = [tensor.clone() for tensor in unchanged]
    found = _outcome(op, implementation.function, arguments)
    cell.compare(_moved(found, "cpu"), wanted, op.tolerance[dtype])
    for kept, tensor in zip(before, unchanged, strict=True):
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
