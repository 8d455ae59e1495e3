"""GPU kernels in Triton, one file per kind of op. A file checks shapes and strides, allocates results and launches.

Nothing here is imported before it is called: ``lazy`` names a function without loading Triton, so that tables of
candidates can be read on machines that lack it. Functions work on whatever device their tensors are on, which on a CPU
is Triton's interpreter (TRITON_INTERPRET=1; float32 only, since its bfloat16 rounds wrongly). Kernels run on the
current stream, allocate through torch and never synchronise, so that steps can be captured in graphs. Sums have one
order, whatever runs beside them: two runs give the same bits. Knows no layer.

Every module lists in ``AOT`` one representative configuration of each of its kernels, which is compiled ahead of time
for all targets without their hardware (see ``aot``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from penstock.kernels.implementation import Implementation

# With an AOT list.
MODULES: tuple[str, ...] = (
    "activation",
    "argmax",
    "attention",
    "attention_decode",
    "attention_prefill",
    "edits",
    "linear",
    "linear_fp8",
    "linear_invariant",
    "norm",
    "rotary",
    "rows",
    "sampling",
    "step",
)


def lazy(module: str, function: str) -> Callable[..., Any]:
    """``function`` of ``penstock.kernels.triton.<module>``, imported by the first call."""
    found: Callable[..., Any] | None = None

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal found
        if found is None:
            found = getattr(importlib.import_module(f"{__name__}.{module}"), function)
        return found(*args, **kwargs)

    call.__name__ = function
    return call


def implementation(
    module: str, function: str, dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32")
) -> Implementation:
    """The row of an op's table for ``lazy(module, function)``. Empty ``dtypes`` mean any."""
    return Implementation(
        "triton",
        lazy(module, function),
        dtypes=dtypes,
        platforms=("cuda",),
        libraries=("triton",),
    )
