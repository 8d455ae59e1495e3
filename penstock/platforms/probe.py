"""Asks this machine what it is: ``probe_platform() -> PlatformFacts``.

It imports no torch and starts no driver context, so it may run in any process. ``choose_platform`` says what a start
computes on.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from penstock.errors import NoBackendError
from penstock.platforms import cgroups, nvml, processor, rates
from penstock.types.decision import Decision, Rejection
from penstock.types.facts import LEAST_CAPABILITY, AcceleratorFacts, PlatformFacts

DATA_PLANES = ("cpu", "cuda")  # platforms that kernels and KV storage exist for
LIBRARIES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "msgspec",
    "pyzmq",
    "uvloop",
    "httptools",
    "transformers",
    "llguidance",
    "xgrammar",
    "flashinfer-python",
    "flashinfer-jit-cache",
    "flash-attn",
    "ray",
)


def probe_platform(root: Path = Path("/")) -> PlatformFacts:
    """Facts about this machine as this process may use it. ``root`` is another file system root in tests."""
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    limits = cgroups.read_limits(root)
    model, instruction_sets = processor.read_cpu(platform.machine(), root)
    cores = processor.count_cores(root)
    if limits.cpus is not None:
        # A thread more than the quota would be throttled in every step, and all threads wait for the slowest.
        cores = min(cores, max(1, int(limits.cpus)))
    total, available = _memory(root, limits)
    accelerators = rates.with_known_rates(nvml.read_accelerators())
    libraries = installed_libraries()
    return PlatformFacts(
        name=platform_name(accelerators, libraries),
        machine=machine,
        cpu_model=model,
        num_cores=cores,
        instruction_sets=instruction_sets,
        memory_bytes=total,
        memory_available_bytes=available,
        accelerators=accelerators,
        libraries=libraries,
        python=platform.python_version(),
        cuda_compiler=cuda_compiler(root),
        extension_missing=extension_missing(),
    )


def extension_missing() -> str:
    """Why the compiled extension cannot be used by this Python; empty when it is there. Imports nothing."""
    if importlib.util.find_spec("penstock._native") is not None:
        return ""
    return (
        "the compiled extension penstock._native was not built for this Python: "
        "install a C++20 compiler (g++ 11 or newer), then run pip install . again"
    )


def platform_name(accelerators: tuple[AcceleratorFacts, ...], libraries: dict[str, str]) -> str:
    """The platform to compute on: that of the first accelerator when nothing speaks against it, else "cpu".
    Accelerators are listed as facts in any case."""
    kind = accelerators[0].kind if accelerators else "cpu"
    return "cpu" if _refusals(kind, accelerators, libraries) else kind


def choose_platform(facts: PlatformFacts, asked: str = "auto") -> tuple[PlatformFacts, Decision]:
    """``facts`` with the platform to compute on, which ``asked`` may name ("cpu", "cuda"), and why.

    Raises NoBackendError, with every reason, when the named one cannot run: it never falls back.
    """
    if asked == "auto":
        return facts, platform_decision(facts)
    others = dict.fromkeys(["cpu", *(accelerator.kind for accelerator in facts.accelerators)])
    refused = _rejections([asked, *others], facts)
    why = "named by --platform"
    if asked not in (rejection.name for rejection in refused):
        return dataclasses.replace(facts, name=asked), Decision("platform", asked, why, refused)
    reasons = next(rejection.reasons for rejection in refused if rejection.name == asked)
    decision = Decision("platform", None, why, refused)
    raise NoBackendError(f"platform: {asked} cannot run.\n  {asked}: {'; '.join(reasons)}", decision=decision)


def platform_decision(facts: PlatformFacts) -> Decision:
    """Where a start computes on the machine of ``facts``, and why not on each kind of accelerator that it has.

    Nothing is chosen for recorded facts of a platform that this version cannot compute on: what is decided for them
    shows the tables, not a start.
    """
    refused = _rejections([facts.name, *(accelerator.kind for accelerator in facts.accelerators)], facts)
    if facts.name not in DATA_PLANES:
        why = f"there is no data plane for {facts.name} yet: a start on this machine would compute on its CPU"
        return Decision("platform", None, why, refused)
    if facts.name == "cpu":
        why = "no accelerator can be used" if refused else "no accelerator was found"
        return Decision("platform", "cpu", why, refused)
    return Decision("platform", facts.name, "the accelerator that was found", refused)


def _rejections(kinds: Iterable[str], facts: PlatformFacts) -> tuple[Rejection, ...]:
    found = {kind: _refusals(kind, facts.accelerators, facts.libraries) for kind in kinds}
    return tuple(Rejection(kind, reasons) for kind, reasons in found.items() if reasons)


def _refusals(kind: str, accelerators: tuple[AcceleratorFacts, ...], libraries: Mapping[str, str]) -> tuple[str, ...]:
    """Every reason against computing on the first accelerator of ``kind``; none for "cpu"."""
    if kind == "cpu":
        return ()
    reasons = []
    if kind not in DATA_PLANES:
        reasons.append(f"this version of Penstock has no kernels and no KV storage for {kind}")
    if not accelerators or accelerators[0].kind != kind:
        reasons.append(f"no {kind} device was found")
    elif kind == "cuda" and accelerators[0].compute_capability < LEAST_CAPABILITY:
        least = ".".join(map(str, LEAST_CAPABILITY))
        reasons.append(f"needs compute capability {least}, found {accelerators[0].capability}")
    version = libraries.get("torch")
    if version is None:
        reasons.append("torch is not installed")
    elif version.endswith("+cpu"):
        reasons.append(f"the installed torch {version} is built for CPUs alone")
    elif kind == "cuda" and "+rocm" in version:
        reasons.append(f"the installed torch {version} is built for ROCm")
    if kind == "cuda" and "triton" not in libraries:
        reasons.append("needs triton, which is not installed")
    return tuple(reasons)


def installed_libraries(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Versions of the installed ones among ``names``, from package metadata; nothing is imported."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cuda_compiler(root: Path = Path("/")) -> str:
    """Path of nvcc, looked for as libraries that compile with it do: in CUDA_HOME or CUDA_PATH, nowhere else if one is
    set; then on PATH; then where it is usually installed. Empty when there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if not home and (found := shutil.which("nvcc")):
        return found
    path = Path(home or root / "usr/local/cuda") / "bin/nvcc"
    return str(path) if path.exists() else ""


def _memory(root: Path, limits: cgroups.CgroupLimits) -> tuple[int, int]:
    """Total and available bytes, each the smaller of the machine's and the control group's."""
    total, available = _machine_memory(root)
    if limits.memory_bytes is not None:
        total = min(total, limits.memory_bytes) if total else limits.memory_bytes
        left = max(0, limits.memory_bytes - (limits.memory_used_bytes or 0))
        available = min(available, left) if available else left
    return total, available


def _machine_memory(root: Path) -> tuple[int, int]:
    values = {}
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            values[key] = int(number[0]) * 1024
    total = values.get("MemTotal") or _sysconf_memory()
    # Kernels before 3.14 and other systems do not tell what is available; half of everything is a careful guess.
    return total, values.get("MemAvailable", total // 2)


def _sysconf_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
