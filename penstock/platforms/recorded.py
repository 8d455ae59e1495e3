"""Recorded facts of other machines, for tests and for ``penstock explain --platform NAME``.

Written down from vendors' data sheets and from probes; they describe hardware, and assume the libraries of a usual
installation. Memory rates are the data sheets'; ``copied_gb_per_s`` alone is measured performance, where it was.
"""

from __future__ import annotations

import difflib

from penstock.errors import ConfigError
from penstock.types.facts import AcceleratorFacts, PlatformFacts

_GIB = 1 << 30
_KEPT_BY_DRIVER = 640 << 20
_AVX2 = ("sse4_2", "avx", "f16c", "fma", "avx2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vbmi", "avx512_vnni")
_AMX = (*_AVX2, "avx_vnni", *_AVX512[len(_AVX2) :], "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16")
_CPU_LIBRARIES = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "safetensors": "0.8.0", "tokenizers": "0.23.3"}
_CUDA_LIBRARIES = {**_CPU_LIBRARIES, "torch": "2.13.0", "triton": "3.7.1"}
_ROCM_LIBRARIES = {**_CPU_LIBRARIES, "torch": "2.13.0+rocm7.2"}


def _gpu(
    name: str, capability: str, *, mib: int, gb_per_s: int, sms: int, l2_mib: int, driver: str, copied_gb_per_s: int = 0
) -> AcceleratorFacts:
    return AcceleratorFacts(
        name=name,
        kind="rocm" if capability.startswith("gfx") else "cuda",
        capability=capability,
        memory_bytes=mib << 20,
        memory_free_bytes=(mib << 20) - _KEPT_BY_DRIVER,
        memory_bytes_per_s=gb_per_s * 1_000_000_000,
        copied_bytes_per_s=copied_gb_per_s * 1_000_000_000,
        num_sms=sms,
        l2_bytes=l2_mib << 20,
        driver=driver,
    )


def _gpu_host(gpu: AcceleratorFacts, *, cpu: str, cores: int, sets: tuple[str, ...], gib: int) -> PlatformFacts:
    return PlatformFacts(
        name=gpu.kind,
        machine="x86_64",
        cpu_model=cpu,
        num_cores=cores,
        instruction_sets=sets,
        memory_bytes=gib * _GIB,
        memory_available_bytes=gib * _GIB * 9 // 10,
        accelerators=(gpu,),
        libraries=dict(_ROCM_LIBRARIES if gpu.kind == "rocm" else _CUDA_LIBRARIES),
        python="3.12.3",
    )


def _cpu_host(cpu: str, *, cores: int, sets: tuple[str, ...], gib: int, machine: str = "x86_64") -> PlatformFacts:
    return PlatformFacts(
        name="cpu",
        machine=machine,
        cpu_model=cpu,
        num_cores=cores,
        instruction_sets=sets,
        memory_bytes=gib * _GIB,
        memory_available_bytes=gib * _GIB * 3 // 4,
        libraries=dict(_CPU_LIBRARIES),
        python="3.12.3",
    )


_AVX2_LAPTOP = _cpu_host("Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", cores=4, sets=_AVX2, gib=16)

RECORDED: dict[str, PlatformFacts] = {
    "h200": _gpu_host(
        _gpu(
            "NVIDIA H200",
            "9.0",
            mib=143771,
            gb_per_s=4800,
            copied_gb_per_s=4300,
            sms=132,
            l2_mib=60,
            driver="580.95.05",
        ),
        cpu="Intel(R) Xeon(R) Platinum 8480+",
        cores=16,
        sets=_AMX,
        gib=128,
    ),
    "h100": _gpu_host(
        _gpu("NVIDIA H100 80GB HBM3", "9.0", mib=81559, gb_per_s=3350, sms=132, l2_mib=50, driver="580.95.05"),
        cpu="Intel(R) Xeon(R) Platinum 8480+",
        cores=26,
        sets=_AMX,
        gib=200,
    ),
    "a100": _gpu_host(
        _gpu("NVIDIA A100-SXM4-80GB", "8.0", mib=81920, gb_per_s=2039, sms=108, l2_mib=40, driver="580.95.05"),
        cpu="AMD EPYC 7742 64-Core Processor",
        cores=30,
        sets=_AVX2,
        gib=240,
    ),
    "rtx4090": _gpu_host(
        _gpu("NVIDIA GeForce RTX 4090", "8.9", mib=24564, gb_per_s=1008, sms=128, l2_mib=72, driver="580.95.05"),
        cpu="AMD Ryzen 9 7950X 16-Core Processor",
        cores=16,
        sets=(*_AVX512, "avx512_bf16"),
        gib=64,
    ),
    "mi300x": _gpu_host(
        _gpu("AMD Instinct MI300X", "gfx942", mib=196592, gb_per_s=5300, sms=304, l2_mib=4, driver="6.16.6"),
        cpu="AMD EPYC 9654 96-Core Processor",
        cores=24,
        sets=(*_AVX512, "avx512_bf16"),
        gib=256,
    ),
    "mi355x": _gpu_host(
        _gpu("AMD Instinct MI355X", "gfx950", mib=294896, gb_per_s=8000, sms=256, l2_mib=4, driver="6.16.6"),
        cpu="AMD EPYC 9575F 64-Core Processor",
        cores=16,
        sets=(*_AVX512, "avx_vnni", "avx512_bf16"),
        gib=384,
    ),
    "gfx1100": _gpu_host(
        _gpu("AMD Radeon RX 7900 XTX", "gfx1100", mib=24560, gb_per_s=960, sms=96, l2_mib=6, driver="6.16.6"),
        cpu="AMD Ryzen 9 7950X 16-Core Processor",
        cores=16,
        sets=(*_AVX512, "avx512_bf16"),
        gib=64,
    ),
    "cpu-avx2": _AVX2_LAPTOP,
    "laptop-avx2": _AVX2_LAPTOP,
    "laptop-arm64": _cpu_host(
        "Snapdragon X Elite",
        cores=12,
        sets=("neon", "fp16", "dotprod", "i8mm", "bf16"),
        gib=32,
        machine="aarch64",
    ),
    "server-arm64": _cpu_host(
        "Neoverse-V2",
        cores=64,
        sets=("neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2"),
        gib=128,
        machine="aarch64",
    ),
    "board-arm64": _cpu_host("Cortex-A76", cores=4, sets=("neon", "fp16", "dotprod"), gib=8, machine="aarch64"),
    "server-amx": _cpu_host("Intel(R) Xeon(R) Platinum 8488C", cores=48, sets=_AMX, gib=384),
}


def recorded_platform(name: str) -> PlatformFacts:
    """Facts of a recorded machine. Raises ConfigError with the known names."""
    if name in RECORDED:
        return RECORDED[name]
    close = difflib.get_close_matches(name, RECORDED, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(f"There is no recorded platform {name!r}; known are {', '.join(RECORDED)}.{meant}")
