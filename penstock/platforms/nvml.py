"""NVIDIA accelerators through the driver's management library, without torch and without creating a context.

It knows names, sizes, clocks and capabilities; it does not know whether an installed torch can use them. Silent where
there is no driver.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence

from penstock.types.facts import AcceleratorFacts

_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
_NAME_BYTES = 96
_CLOCK_MEMORY = 2  # NVML_CLOCK_MEM
_TRANSFERS_PER_CLOCK = 2  # of the memory clock that the library tells, whatever the kind of memory
# The library counts cores, not multiprocessors; by capability, any other of the same major number as the first.
_CORES_PER_SM = {"7.0": 64, "8.0": 64, "8.6": 128, "8.7": 128, "8.9": 128, "9.0": 128, "10.0": 128, "12.0": 128}
# The library does not tell the second-level cache, and asking the driver would start it in this process, whose children
# could not use it then. The first name that an accelerator's begins with decides.
_L2_MIB = {
    "NVIDIA A100": 40,
    "NVIDIA A10": 6,
    "NVIDIA A30": 24,
    "NVIDIA A40": 6,
    "NVIDIA B200": 126,
    "NVIDIA GH200": 60,
    "NVIDIA H100": 50,
    "NVIDIA H200": 60,
    "NVIDIA L40": 96,
    "NVIDIA L4": 48,
    "NVIDIA GeForce RTX 3090": 6,
    "NVIDIA GeForce RTX 4080": 64,
    "NVIDIA GeForce RTX 4090": 72,
    "NVIDIA GeForce RTX 5090": 96,
}


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def read_accelerators(environ: Mapping[str, str] | None = None) -> tuple[AcceleratorFacts, ...]:
    """Facts of every accelerator that CUDA_VISIBLE_DEVICES lets this process see, in that order.

    The library counts by place on the bus, CUDA by speed unless CUDA_DEVICE_ORDER says otherwise: it is set here, for
    this process and its children, unless the user has set it. ``kernels.device`` checks what came of it.
    """
    library = _load()
    if library is None or library.nvmlInit_v2() != 0:
        return ()
    if environ is None:
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        handles = _handles(library)
        visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
        chosen = range(len(handles)) if visible is None else select_visible(visible, [u for _, u in handles])
        found = [_facts(library, *handles[index]) for index in chosen]
        return tuple(facts for facts in found if facts is not None)
    finally:
        library.nvmlShutdown()


def select_visible(visible: str, uuids: Sequence[str]) -> list[int]:
    """Indices named by a CUDA_VISIBLE_DEVICES value. As CUDA does, the list ends at the first entry that names
    nothing, and an identifier may be shortened. Slices of a device (MIG-...) are not told apart and end it too."""
    indices: list[int] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit() and int(entry) < len(uuids):
            index = int(entry)
        else:
            matches = [i for i, uuid in enumerate(uuids) if entry.startswith("GPU-") and uuid.startswith(entry)]
            if len(matches) != 1:
                break
            index = matches[0]
        if index in indices:
            return []
        indices.append(index)
    return indices


def _load() -> ctypes.CDLL | None:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _handles(library: ctypes.CDLL) -> list[tuple[ctypes.c_void_p, str]]:
    count = ctypes.c_uint(0)
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return []
    handles = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
            handles.append((handle, _string(library.nvmlDeviceGetUUID, handle)))
    return handles


def _facts(library: ctypes.CDLL, handle: ctypes.c_void_p, uuid: str) -> AcceleratorFacts | None:
    memory = _Memory()
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        return None
    if library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) != 0:
        return None
    name = _string(library.nvmlDeviceGetName, handle)
    capability = f"{major.value}.{minor.value}"
    clock_mhz = _number(library, "nvmlDeviceGetMaxClockInfo", handle, ctypes.c_uint(_CLOCK_MEMORY))
    bus_bits = _number(library, "nvmlDeviceGetMemoryBusWidth", handle)
    return AcceleratorFacts(
        name=name,
        kind="cuda",
        capability=capability,
        memory_bytes=memory.total,
        memory_free_bytes=memory.free,
        memory_bytes_per_s=clock_mhz * 1_000_000 * _TRANSFERS_PER_CLOCK * bus_bits // 8,
        num_sms=_number(library, "nvmlDeviceGetNumGpuCores", handle) // cores_per_sm(capability),
        l2_bytes=l2_bytes(name),
        driver=_string(library.nvmlSystemGetDriverVersion),
        uuid=uuid,
    )


def cores_per_sm(capability: str) -> int:
    """Cores that make one multiprocessor; those of Ampere and later were never fewer than 64."""
    major = capability.partition(".")[0]
    near = (cores for known, cores in _CORES_PER_SM.items() if known.partition(".")[0] == major)
    return _CORES_PER_SM.get(capability) or next(near, 128)


def l2_bytes(name: str) -> int:
    """The second-level cache of an accelerator by its name; 0 when it is not in the table."""
    return next((mib << 20 for known, mib in _L2_MIB.items() if name.startswith(known)), 0)


def _number(library: ctypes.CDLL, function: str, *arguments: ctypes.c_void_p | ctypes.c_uint) -> int:
    """What ``function`` writes to its last argument; 0 when this driver has no such function or no answer."""
    value = ctypes.c_uint(0)
    ask = getattr(library, function, None)
    return value.value if ask is not None and ask(*arguments, ctypes.byref(value)) == 0 else 0


def _string(function: ctypes._NamedFuncPointer, *arguments: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(_NAME_BYTES)
    return buffer.value.decode() if function(*arguments, buffer, _NAME_BYTES) == 0 else ""
