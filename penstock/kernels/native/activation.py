"""Gated activations on the extension."""

from __future__ import annotations

from typing import Any

import torch

from penstock.kernels.activations import QuantizedRows
from penstock.kernels.native.extension import address, extension, matrix, row_stride
from penstock.kernels.native.memory import empty
from penstock.kernels.native.quantize import addresses, empty_quantized


def silu_and_mul(isa: int, gate_up: torch.Tensor) -> torch.Tensor:
    """See ``reference.silu_and_mul``. gate_up float32 [..., 2n] with rows at one distance."""
    return _gate(extension().silu_and_mul, isa, gate_up)


def gelu_and_mul(isa: int, gate_up: torch.Tensor) -> torch.Tensor:
    """See ``reference.gelu_and_mul``. gate_up float32 [..., 2n] with rows at one distance."""
    return _gate(extension().gelu_and_mul, isa, gate_up)


def silu_and_mul_quantized(isa: int, gate_up: torch.Tensor) -> QuantizedRows:
    """See ``reference.silu_and_mul_quantized``. gate_up float32 [rows, 2n] with contiguous rows."""
    return _gate_quantized(extension().silu_and_mul_quantized, isa, gate_up)


def gelu_and_mul_quantized(isa: int, gate_up: torch.Tensor) -> QuantizedRows:
    """See ``reference.gelu_and_mul_quantized``. gate_up float32 [rows, 2n] with contiguous rows."""
    return _gate_quantized(extension().gelu_and_mul_quantized, isa, gate_up)


def _gate(kernel: Any, isa: int, gate_up: torch.Tensor) -> torch.Tensor:
    x = matrix(gate_up)
    rows, size = x.shape[0], x.shape[1] // 2
    out = empty((*gate_up.shape[:-1], size), torch.float32)
    kernel(isa, address(x, torch.float32), rows, size, row_stride(x), out.data_ptr())
    return out


def _gate_quantized(kernel: Any, isa: int, gate_up: torch.Tensor) -> QuantizedRows:
    x = matrix(gate_up)
    rows, size = x.shape[0], x.shape[1] // 2
    out = empty_quantized(rows, size)
    kernel(isa, address(x, torch.float32), rows, size, row_stride(x), *addresses(out))
    return out
