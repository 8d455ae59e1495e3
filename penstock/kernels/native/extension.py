"""The compiled extension, loaded on first use, and the checks between tensors and addresses.

Knows no op.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Mapping
from types import ModuleType

import torch

# The numbers of native/runtime/isa.hpp.
ISAS: Mapping[str, int] = {"baseline": 0, "avx2": 1, "avx512": 2, "neon": 3, "avx512_bf16": 4, "neon_bf16": 5}


@functools.cache
def extension() -> ModuleType:
    """``penstock._native``. Raises ImportError when it was not built; the oracle refuses native rows before that."""
    return importlib.import_module("penstock._native")


def built_sets() -> tuple[str, ...]:
    """Instruction sets that the extension was built for. Raises ImportError when it was not built, or does not load."""
    return tuple(extension().BUILT_SETS)


def set_num_threads(num_threads: int) -> None:
    """Threads that kernels of this process run on, the calling one included. Nothing to do without the extension."""
    with contextlib.suppress(ImportError):
        extension().set_num_threads(num_threads)


def address(tensor: torch.Tensor, dtype: torch.dtype) -> int:
    """Where the tensor's first element is. Raises TypeError when its type differs: the kernel would read nonsense."""
    if tensor.dtype is not dtype:
        raise TypeError(f"a native kernel needs {dtype}, found {tensor.dtype}")
    return tensor.data_ptr()


def row_stride(tensor: torch.Tensor) -> int:
    """Elements from one row to the next of a matrix whose rows are contiguous. Raises ValueError for other layouts."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"a native kernel needs contiguous rows, found strides {tensor.stride()}")
    return tensor.stride(0)


def matrix(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor [..., n] as [rows, n] with contiguous rows, without a copy: a copy would not be part of a recorded
    program. Raises ValueError for layouts that have no such view."""
    rows = tensor
    if tensor.dim() != 2:
        try:
            rows = tensor.view(-1, tensor.shape[-1]) if tensor.numel() else tensor.new_empty((0, tensor.shape[-1]))
        except RuntimeError as error:
            raise ValueError(f"a native kernel needs rows at one distance, found strides {tensor.stride()}") from error
    row_stride(rows)
    return rows
