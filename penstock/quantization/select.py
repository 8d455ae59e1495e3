"""Which LinearMethod runs a weight: the candidate table, asked through the oracle.

It does not know layers or files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast

from penstock.errors import ConfigError
from penstock.oracle.choose import choose
from penstock.quantization.backends.linear_cuda import LinearCuda
from penstock.quantization.backends.linear_dense import LinearDense
from penstock.quantization.backends.linear_fp8 import LinearFp8
from penstock.quantization.backends.linear_invariant import LinearInvariant
from penstock.quantization.backends.linear_native import NATIVE_METHODS
from penstock.quantization.backends.linear_reference import LinearReference
from penstock.quantization.linear import Ladder, LinearMethod, LinearSpec
from penstock.types.decision import Decision

# In order of preference. Methods that multiply with packed codes go before dense, widest vectors first; plain C++
# (native_baseline) does not, because torch's vectors beat it. reference dequantizes in every call, so it stands last
# and runs only when it is named. Methods of cuda devices and native ones run on no common platform. cuda_invariant is
# for batch-invariant results, which the others refuse.
LINEAR_METHODS: tuple[LinearMethod, ...] = (
    *NATIVE_METHODS[:-1],
    LinearFp8(),
    LinearCuda(),
    LinearInvariant(),
    LinearDense(),
    NATIVE_METHODS[-1],
    LinearReference(),
)

# What the place of a method rests on (docs/performance.md).
GROUNDS: Mapping[str, str] = {
    "native_avx512": "1 and 64 rows times 3072x576 in Q4_1 take 17 and 390 us, with AVX2 36 and 1,600 us (2 CPU cores)",
    "native_avx2": "1 row times 3072x576 in Q4_1 takes 36 us, dense 85 us (2 CPU cores, both with AVX2 or better)",
    "native_neon": "reads a sixth of the bytes that dense reads for Q4_1; not yet timed on a machine",
    "cuda_fp8": "half the memory, 256 rows times 28672x4096 take 62 us with row scales, 154 in blocks, dense 92 (H200)",
    "cuda_skinny": "the weights of an 8B model take one row 3.68 ms, with torch 3.86 (H200); more rows are as fast",
    "cuda_invariant": "its sums have one order for all row counts; one row of an 8B model 5.06 ms, else 4.18 (H200)",
    "dense": "1 row times 3072x576 takes 90 us, plain C++ on Q4_1 270 us (2 CPU cores); 64 rows 1.6 and 12 ms",
    "native_baseline": "1 row times 3072x576 in Q4_1 takes 270 us, with the reference 2,000 us (2 CPU cores)",
}


# Multiply no plain weights, which every model has: a user who names one of them names it for the others.
QUANTIZED_ONLY = frozenset({"cuda_fp8"})


def choose_linear(spec: LinearSpec, forced: str | None = None) -> tuple[LinearMethod, Decision]:
    """The first method that can run ``spec``, or the one named ``forced``, unless it is for quantized weights only and
    this is none. Raises NoBackendError with every reason."""
    if forced in QUANTIZED_ONLY and spec.scheme.kind == "dense":
        forced = None
    subject = f"linear {spec.scheme.name} {spec.out_features}x{spec.in_features} {spec.dtype}"
    subject += ", batch-invariant" if spec.batch_invariant else ""
    method, decision = choose(
        subject, spec, LINEAR_METHODS, forced=forced, forced_by="--linear-backend", grounds=GROUNDS
    )
    rungs = method.rungs(spec) if isinstance(method, Ladder) else ()
    return cast(LinearMethod, method), replace(decision, rungs=rungs)


def check_used(forced: str | None, chosen: Collection[str]) -> None:
    """Raises ConfigError when the method named by the user multiplies none of a model's weights."""
    if forced in QUANTIZED_ONLY and forced not in chosen:
        raise ConfigError(
            f"Leave out --linear-backend {forced}, or name another method: it multiplies quantized weights, and this "
            "model has none."
        )
