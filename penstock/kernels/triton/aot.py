"""What is compiled ahead of time, for which targets, and how one case is. Knows no kernel.

Triton is imported by ``compile_case`` alone, so that cases and targets can be talked about without it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.kernels.triton.card import NONE, Capability

RESERVED_BYTES = 1 << 10  # of shared memory, which every block of CUDA has besides its own
POINTER_ALIGNMENT = 16  # bytes; of every tensor that torch allocates, and of every stride that kernels rely on


@dataclass(frozen=True, slots=True, kw_only=True)
class AotCase:
    """One configuration of one kernel. ``signature`` gives the type of every argument that is not a constexpr, as
    Triton writes them ("*bf16", "*i64", "fp32", "i32"); ``constants`` the values of those that are.

    Pointers are compiled as divisible by 16, as those of tensors are; of integers only those whose type ends in ":16".
    Constexprs that have a default and are not in ``constants`` take it. Without ``num_stages`` it is Triton's own, as
    in launches that name none. ``targets`` empty means all of ``TARGETS``; a kernel whose launches differ between
    devices has a case for each of them, made from the tables that its launches read; of ROCm's, which nothing is
    launched on yet, the fewest. ``PDL`` among the constants: it is
    launched early.
    """

    kernel: Any  # triton.JITFunction
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """``backend`` and ``arch`` as Triton writes them; ``shared_bytes`` is what one block of threads may have."""

    name: str
    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int

    @property
    def capability(self) -> Capability:
        return NONE if isinstance(self.arch, str) else (self.arch // 10, self.arch % 10)

    @property
    def processor_bytes(self) -> int:
        """Shared memory of a multiprocessor, of which CUDA keeps a little for itself in every block."""
        return self.shared_bytes + (RESERVED_BYTES if self.backend == "cuda" else 0)


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, 163 << 10),
        Target("sm_89", "cuda", 89, 32, 99 << 10),
        Target("sm_90", "cuda", 90, 32, 227 << 10),
        Target("sm_100", "cuda", 100, 32, 227 << 10),
        Target("gfx942", "hip", "gfx942", 64, 64 << 10),
        Target("gfx950", "hip", "gfx950", 64, 160 << 10),
        Target("gfx1100", "hip", "gfx1100", 32, 64 << 10),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """Of one case for one target. ``registers`` of one thread and ``spills`` are None where the compiler does not tell.
    ``spills`` counts vector registers for ROCm; for CUDA it is the bytes of a thread's stack, where arrays of library
    functions lie too, such as those of a cosine. ``code_bytes`` is the size of the binary."""

    seconds: float
    registers: int | None
    spills: int | None
    shared_bytes: int
    code_bytes: int


def compile_case(case: AotCase, target: Target) -> Compiled:
    """Compile, or find in Triton's cache. Raises whatever Triton raises; LLVM may end the process instead.

    Raises ValueError when the case does not fit its kernel, or the result the target's shared memory.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attrs = bind(case)
    started = time.perf_counter()
    found = triton.compile(
        ASTSource(case.kernel, signature, constants, attrs),
        target=GPUTarget(target.backend, target.arch, target.warp_size),
        options=_options(case),
    )
    seconds = time.perf_counter() - started
    shared = int(found.metadata.shared)
    if shared > target.shared_bytes:
        raise ValueError(f"needs {shared} bytes of shared memory, {target.name} has {target.shared_bytes}")
    registers, spills = _register_use(found.asm)
    return Compiled(
        seconds=seconds, registers=registers, spills=spills, shared_bytes=shared, code_bytes=len(found.kernel)
    )


def _options(case: AotCase) -> dict[str, int | bool]:
    options: dict[str, int | bool] = {"num_warps": case.num_warps}
    if case.num_stages is not None:
        options["num_stages"] = case.num_stages
    if case.constants.get("PDL"):
        options["launch_pdl"] = True
    return options


def bind(case: AotCase) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """(types of all arguments, constexprs, attributes by position) as Triton's sources take them.

    Raises ValueError for an argument that the case leaves out, and for a name that the kernel does not have.
    """
    parameters = {each.name: each for each in case.kernel.params}
    constants = {name: each.default for name, each in parameters.items() if each.is_constexpr and each.has_default}
    constants |= {name: value for name, value in case.constants.items() if name in parameters}
    signature: dict[str, str] = {}
    attrs: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, name in enumerate(parameters):
        if name in case.signature:
            kind, _, divisor = case.signature[name].partition(":")
            signature[name] = kind
            if divisor or kind.startswith("*"):
                attrs[(position,)] = [["tt.divisibility", int(divisor or POINTER_ALIGNMENT)]]
        elif name in constants:
            signature[name] = "constexpr"
    missing = [name for name in parameters if name not in signature]
    unknown = [name for name in (*case.signature, *case.constants) if name not in parameters]
    twice = [name for name in case.signature if name in case.constants]
    if missing or unknown or twice:
        found = {"without a type or value": missing, "unknown": unknown, "given twice": twice}
        raise ValueError("; ".join(f"{what}: {', '.join(names)}" for what, names in found.items() if names))
    return signature, {name: value for name, value in constants.items() if signature[name] == "constexpr"}, attrs


def _register_use(asm: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(registers, spills) as ``Compiled`` has them."""
    if "amdgcn" in asm:
        return _number(r"\.vgpr_count:\s*(\d+)", asm["amdgcn"]), _number(r"\.vgpr_spill_count:\s*(\d+)", asm["amdgcn"])
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return _number(r"REG:(\d+)", text), _number(r"STACK:(\d+)", text)


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else None
