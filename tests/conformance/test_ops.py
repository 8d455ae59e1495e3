"""Every op of the list over a grid: odd sizes, one row, no rows, strided inputs; implementations against references."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from penstock.errors import NoBackendError
from penstock.kernels.ops import OPS, Implementation, Op, OpSpec, choose_op
from penstock.types.facts import PlatformFacts

DTYPES = ("float32", "bfloat16", "float16")
ROWS = (0, 1, 2, 7, 33)
CPU = PlatformFacts(name="cpu", machine="x86_64", instruction_sets=("avx2",))


@dataclass(frozen=True)
class Cell:
    """One point of an op's grid. ``make`` builds the arguments for a dtype."""

    name: str
    make: Callable[[torch.dtype], tuple[Any, ...]]


def _values(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def _strided(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Contiguous in the last dimension only, with rows further apart than they are long."""
    return _values(*shape[:-1], shape[-1] + 13, dtype=dtype)[..., : shape[-1]]


def _norm_cells() -> Iterator[Cell]:
    for size in (1, 8, 63, 576):
        for rows in ROWS:
            yield Cell(
                f"{rows}x{size}",
                lambda dtype, rows=rows, size=size: (
                    _values(rows, size, dtype=dtype),
                    _values(size, dtype=torch.float32),
                    1e-5,
                ),
            )
    yield Cell("strided", lambda dtype: (_strided(5, 64, dtype=dtype), _values(64, dtype=torch.float32), 1e-6))
    yield Cell("per-head", lambda dtype: (_strided(3, 5, 16, dtype=dtype), _values(5, 16, dtype=torch.float32), 1e-6))
    yield Cell("tiny", lambda dtype: (_values(2, 8, dtype=dtype) * 1e-3, _values(8, dtype=torch.float32), 1e-6))
    yield Cell("zero", lambda dtype: (torch.zeros(2, 8, dtype=dtype), _values(8, dtype=torch.float32), 1e-6))


def _rotary_tables(tokens: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.rand(tokens, 1, head_dim // 2, generator=torch.Generator().manual_seed(3)) * 6
    return torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)


def _rotary_cells() -> Iterator[Cell]:
    for tokens in ROWS:
        for heads, head_dim in ((1, 2), (3, 10), (12, 64)):
            yield Cell(
                f"{tokens}x{heads}x{head_dim}",
                lambda dtype, t=tokens, h=heads, d=head_dim: (_values(t, h, d, dtype=dtype), *_rotary_tables(t, d)),
            )
    yield Cell("strided", lambda dtype: (_values(4, 9, 16, dtype=dtype)[:, 2:7], *_rotary_tables(4, 16)))


def _gated_cells() -> Iterator[Cell]:
    for size in (1, 7, 64, 1536):
        for rows in ROWS:
            yield Cell(f"{rows}x{size}", lambda dtype, r=rows, n=size: (_values(r, 2 * n, dtype=dtype),))
    yield Cell("strided", lambda dtype: (_strided(5, 32, dtype=dtype),))
    yield Cell("large", lambda dtype: (_values(3, 32, dtype=dtype) * 30,))


GRID: dict[str, Callable[[], Iterator[Cell]]] = {
    "rms_norm": _norm_cells,
    "rotary": _rotary_cells,
    "silu_and_mul": _gated_cells,
    "gelu_and_mul": _gated_cells,
}

# What torch itself says the reference should be, for ops whose implementations are chosen in another table.
TRUTHS = {
    "rms_norm": lambda x, w, eps: torch.nn.functional.rms_norm(x, x.shape[-1:], None, eps) * w,
    "silu_and_mul": lambda x: torch.nn.functional.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
    "gelu_and_mul": lambda x: torch.nn.functional.gelu(x.chunk(2, -1)[0], approximate="tanh") * x.chunk(2, -1)[1],
}


def _rows() -> Iterator[Any]:
    for op in OPS.values():
        for implementation in op.implementations:
            for cell in GRID[op.name]():
                for dtype in DTYPES:
                    yield pytest.param(
                        op, implementation, cell, dtype, id=f"{op.name}-{implementation.name}-{cell.name}-{dtype}"
                    )


@pytest.mark.parametrize(("op", "implementation", "cell", "dtype"), list(_rows()))
def test_implementation_agrees_with_its_reference(
    op: Op, implementation: Implementation, cell: Cell, dtype: str
) -> None:
    verdict = implementation.can_run(OpSpec(dtype=dtype, platform=CPU))
    if not verdict.ok:
        pytest.skip("; ".join(verdict.reasons))
    arguments = cell.make(getattr(torch, dtype))
    before = [a.clone() for a in arguments if isinstance(a, torch.Tensor)]
    wanted = op.reference(*arguments)
    found = implementation.function(*arguments)
    relative, absolute = op.tolerance[dtype]
    scale = max(1.0, wanted.float().abs().max().item()) if wanted.numel() else 1.0
    torch.testing.assert_close(found, wanted, rtol=relative, atol=absolute * scale)
    for kept, argument in zip(before, (a for a in arguments if isinstance(a, torch.Tensor)), strict=True):
        torch.testing.assert_close(argument, kept, rtol=0, atol=0)


@pytest.mark.parametrize("name", TRUTHS)
def test_reference_agrees_with_torch(name: str) -> None:
    for cell in GRID[name]():
        arguments = cell.make(torch.float32)
        torch.testing.assert_close(OPS[name].reference(*arguments), TRUTHS[name](*arguments), rtol=1e-5, atol=1e-5)


def test_rotary_reference_is_a_complex_rotation() -> None:
    x, angles = _values(6, 2, 8, dtype=torch.float32), torch.rand(6, 1, 4) * 6
    turned = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.polar(torch.ones_like(angles), angles)
    cos, sin = angles.cos(), angles.sin()
    found = OPS["rotary"].reference(x, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
    torch.testing.assert_close(found, torch.cat((turned.real, turned.imag), -1))


def test_linear_and_embedding_references() -> None:
    x, weight, bias = (_values(*shape, dtype=torch.float32, seed=i) for i, shape in enumerate(((5, 7), (3, 7), (3,))))
    torch.testing.assert_close(OPS["linear"].reference(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
    ids = torch.tensor([2, 0, 2])
    torch.testing.assert_close(OPS["embedding"].reference(weight, ids), weight[ids], rtol=0, atol=0)
    assert OPS["embedding"].reference(weight, ids[:0]).shape == (0, 7)


def test_every_row_has_a_grid_or_names_its_table() -> None:
    for op in OPS.values():
        assert bool(op.implementations) != bool(op.selected_in), op.name
        assert (op.name in GRID) == bool(op.implementations), op.name
        assert set(op.tolerance) == set(DTYPES), op.name


def test_an_implementation_says_every_reason_against_it() -> None:
    picky = Implementation("picky", torch.abs, dtypes=("float16",), platforms=("cuda",), instruction_sets=("amx",))
    verdict = picky.can_run(OpSpec(dtype="float32", platform=CPU))
    assert len(verdict.reasons) == 3
    assert "amx" in verdict.reasons[2]


def test_a_forced_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(NoBackendError, match="no candidate named 'magic'"):
        choose_op("rms_norm", OpSpec(dtype="float32", platform=CPU), "magic")
