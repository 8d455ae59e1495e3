"""The processor: model name, instruction sets, cores. Reads /proc and /sys on Linux, sysctl on macOS.

It does not know limits (see ``cgroups``), nor which instruction set helps what. ``root`` is "/" except in tests.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

# As /proc/cpuinfo writes them -> as we write them, in the order in which we list them.
X86_INSTRUCTION_SETS: dict[str, str] = {
    "sse4_2": "sse4_2",
    "avx": "avx",
    "f16c": "f16c",
    "fma": "fma",
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vbmi": "avx512_vbmi",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "amx_fp16": "amx_fp16",
}
ARM_INSTRUCTION_SETS: dict[str, str] = {
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
}
_DARWIN_FEATURES = {"FEAT_FP16": "fp16", "FEAT_DotProd": "dotprod", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16"}


def read_cpu(machine: str, root: Path = Path("/")) -> tuple[str, tuple[str, ...]]:
    """Model name and instruction sets, both empty where the system does not tell."""
    if platform.system() == "Darwin" and root == Path("/"):
        return _darwin(machine)
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ()
    return parse_cpuinfo(text)


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Model name and instruction sets that every listed processor has (hybrid parts differ)."""
    model = ""
    common: set[str] | None = None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "model name":
                model = model or value.strip()
            case "flags" | "Features":
                present = set(value.split())
                common = present if common is None else common & present
    known = X86_INSTRUCTION_SETS | ARM_INSTRUCTION_SETS
    return model, tuple(ours for theirs, ours in known.items() if theirs in (common or ()))


def count_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may run on: hyper-threads of one core count once."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not offered on macOS and Windows
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            cores.add(path.read_text(encoding="ascii").strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def last_level_cache(root: Path = Path("/")) -> int:
    """Bytes of the largest cache that the first core uses; 0 where the system does not tell."""
    sizes = [0]
    for path in root.glob("sys/devices/system/cpu/cpu0/cache/index*/size"):
        text = path.read_text(encoding="ascii").strip()
        number, unit = text.rstrip("KMG"), text.lstrip("0123456789")
        sizes.append(int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit])
    return max(sizes)


def _darwin(machine: str) -> tuple[str, tuple[str, ...]]:
    model = _sysctl("machdep.cpu.brand_string")
    if machine != "arm64":
        words = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}".lower()
        present = set(words.replace("avx1.0", "avx").replace("sse4.2", "sse4_2").split())
        return model, tuple(ours for theirs, ours in X86_INSTRUCTION_SETS.items() if theirs in present)
    sets = [ours for name, ours in _DARWIN_FEATURES.items() if _sysctl(f"hw.optional.arm.{name}") == "1"]
    return model, ("neon", *sets)


def _sysctl(name: str) -> str:
    try:
        answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()
