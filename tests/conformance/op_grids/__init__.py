"""The grids that every op of the list is run over: one module per kind of op, found by ``discover``.

A module has ``GRIDS`` (op name -> its cells) and, where torch itself says what the reference should be, ``TRUTHS``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType

from op_grids.cells import Cell

Grid = Callable[[], Iterator[Cell]]
Truth = Callable[..., object]


def _modules() -> list[ModuleType]:
    return [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]


def discover() -> tuple[Mapping[str, Grid], Mapping[str, Truth]]:
    """All grids and truths of the modules here. Raises ValueError when two modules name the same op."""
    grids: dict[str, Grid] = {}
    truths: dict[str, Truth] = {}
    for module in _modules():
        for found, into in ((getattr(module, "GRIDS", {}), grids), (getattr(module, "TRUTHS", {}), truths)):
            if twice := found.keys() & into.keys():
                raise ValueError(f"{module.__name__} has a second entry for {', '.join(sorted(twice))}")
            into.update(found)
    return grids, truths
