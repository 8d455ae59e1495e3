"""Kernels that cannot be compiled, each for another reason, with a good one behind them."""

from __future__ import annotations

import os
import signal

import triton
import triton.language as tl

from penstock.kernels.triton.aot import AotCase


@triton.jit
def nothing_of_that_name(x):
    tl.store(x, tl.there_is_no_such_function(x))


@triton.jit
def copies_one(x, y):
    tl.store(y, tl.load(x))


class EndsItsProcess:
    """In the place of a kernel: what LLVM does when it cannot go on."""

    __name__ = "ends_its_process"

    @property
    def params(self):
        os.kill(os.getpid(), signal.SIGABRT)


AOT = (
    AotCase(kernel=nothing_of_that_name, signature={"x": "*fp32"}),
    AotCase(kernel=copies_one, signature={"x": "*fp32", "z": "*fp32"}),
    AotCase(kernel=EndsItsProcess(), signature={}),
    AotCase(kernel=copies_one, signature={"x": "*fp32", "y": "*fp32"}),
    AotCase(kernel=copies_one, signature={"x": "*bf16", "y": "*bf16"}, targets=("gfx942",)),
)
