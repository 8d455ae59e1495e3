"""Gated activations in Triton. Knows no model."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from penstock.kernels.triton.aot import AotCase
from penstock.kernels.triton.early import AOT_LAUNCHES, early_launch, launches_early, wait_for_the_kernel_before
from penstock.kernels.triton.layout import matrix

SMALL_PROGRAMS = 1024  # so many are spread over the card in small blocks: a step of few rows waits for latency alone


@triton.jit
def _gated_kernel(gate_up, out, size, row_stride, GELU: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        wait_for_the_kernel_before()
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    there = column < size
    at = gate_up + row * row_stride + column
    gate = tl.load(at, mask=there, other=0.0).to(tl.float32)
    up = tl.load(at + size, mask=there, other=0.0).to(tl.float32)
    inner = gate
    if GELU:
        # 0.5 * (1 + tanh(y)) is the logistic function of 2 y, which loses nothing where tanh is near -1.
        inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    result = gate / (1.0 + tl.exp(-inner)) * up
    tl.store(out + row * size + column, result.to(out.dtype.element_ty), mask=there)


def silu_and_mul(gate_up: torch.Tensor, *, block: int = 0, num_warps: int = 0) -> torch.Tensor:
    """See ``reference.silu_and_mul``. gate_up [..., 2n] with rows at one distance."""
    return _gated(gate_up, gelu=False, block=block, num_warps=num_warps)


def gelu_and_mul(gate_up: torch.Tensor, *, block: int = 0, num_warps: int = 0) -> torch.Tensor:
    """See ``reference.gelu_and_mul``. gate_up [..., 2n] with rows at one distance."""
    return _gated(gate_up, gelu=True, block=block, num_warps=num_warps)


def _gated(gate_up: torch.Tensor, *, gelu: bool, block: int, num_warps: int) -> torch.Tensor:
    view = matrix(gate_up)
    rows, size = view.shape[0], view.shape[1] // 2
    out = torch.empty((*gate_up.shape[:-1], size), dtype=gate_up.dtype, device=gate_up.device)
    if rows and size:
        pdl = launches_early(view)
        block = block or (512 if rows * triton.cdiv(size, 512) <= SMALL_PROGRAMS else 1024)
        _gated_kernel[(rows * triton.cdiv(size, block),)](
            view, out, size, view.stride(0), GELU=gelu, BLOCK=block, PDL=pdl,
            num_warps=num_warps or max(1, block // 256), **early_launch(pdl),
        )  # fmt: skip
    return out


AOT = tuple(
    AotCase(
        kernel=_gated_kernel,
        signature={"gate_up": "*bf16", "out": "*bf16", "size": "i32", "row_stride": "i32"},
        constants={"GELU": gelu, "BLOCK": 1024, "PDL": pdl},
        targets=targets,
    )
    for pdl, targets in AOT_LAUNCHES
    for gelu in (False, True)
)
