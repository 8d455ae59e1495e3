"""A matrix product with all that kernels are made of: loops, masks, dots, reductions, functions of their own."""

from __future__ import annotations

import triton
import triton.language as tl

from penstock.kernels.triton.aot import AotCase


@triton.jit
def squared(x):
    return x * x


@triton.jit
def matrix_product(a, b, c, rows, stride: tl.int64, K: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr = 32):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, STEP):
        inner = start + tl.arange(0, STEP)
        left = tl.load(a + row[:, None] * stride + inner[None, :], mask=row[:, None] < rows, other=0.0)
        total += tl.dot(left, tl.load(b + column[None, :] * stride + inner[:, None]))
    norm = tl.sqrt(tl.sum(squared(total), 1) + 1e-6)
    tl.store(c + row[:, None] * stride + column[None, :], total / norm[:, None], mask=row[:, None] < rows)


AOT = (
    AotCase(
        kernel=matrix_product,
        signature={"a": "*bf16", "b": "*bf16", "c": "*fp32", "rows": "i32", "stride": "i64:16"},
        constants={"K": 512, "BLOCK": 64},
        num_stages=3,
    ),
)
