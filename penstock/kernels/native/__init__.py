"""CPU kernels of the compiled extension ``penstock._native``, one file per folder of ``native/``.

A file checks types, shapes and strides, allocates the result and hands addresses to the extension; that is all it does.
Functions take the instruction set first (a key of ISAS); ``implementations`` makes the rows of the op list from one.
Knows no layer. Without the extension the rows are there and refuse with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from penstock.kernels.implementation import Implementation
from penstock.kernels.native.extension import ISAS
from penstock.types.facts import PlatformFacts

# What the processor must have for each, as platforms names it. Best first.
ISA_NEEDS: Mapping[str, tuple[str, ...]] = {
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    "avx2": ("avx2", "fma", "f16c"),
    "neon": ("neon", "dotprod", "i8mm"),
    "baseline": (),
}
# The same for weights of bfloat16: two sets have kernels on its dot product besides, ahead of the ones that widen it.
BF16_ISA_NEEDS: Mapping[str, tuple[str, ...]] = {
    "avx512_bf16": (*ISA_NEEDS["avx512"], "avx512_bf16"),
    "neon_bf16": (*ISA_NEEDS["neon"], "bf16"),
    **ISA_NEEDS,
}
ISA_MACHINES: Mapping[str, str] = {
    "avx512_bf16": "x86_64",
    "avx512": "x86_64",
    "avx2": "x86_64",
    "neon_bf16": "aarch64",
    "neon": "aarch64",
}


def usable_sets(platform: PlatformFacts) -> tuple[str, ...]:
    """Instruction sets whose kernels run on ``platform``, best first; none without the extension."""
    if platform.extension_missing:
        return ()
    return tuple(
        isa
        for isa, needs in BF16_ISA_NEEDS.items()
        if ISA_MACHINES.get(isa, platform.machine) == platform.machine and set(needs) <= set(platform.instruction_sets)
    )


def implementations(function: Callable[..., Any], dtypes: tuple[str, ...] = ("float32",)) -> tuple[Implementation, ...]:
    """A row for every instruction set, named ``native_<isa>``, best first."""
    return tuple(
        Implementation(
            f"native_{isa}",
            partial(function, ISAS[isa]),
            dtypes=dtypes,
            platforms=("cpu",),
            instruction_sets=needs,
            machine=ISA_MACHINES.get(isa, ""),
            needs_extension=True,
        )
        for isa, needs in ISA_NEEDS.items()
    )
