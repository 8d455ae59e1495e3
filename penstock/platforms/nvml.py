"""NVIDIA accelerators through the driver's management library, without torch and without creating a context.

It knows names, sizes and capabilities; it does not know whether an installed torch can use them. Silent where
there is no driver.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence

from penstock.types.facts import AcceleratorFacts

_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
_NAME_BYTES = 96


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def read_accelerators(environ: Mapping[str, str] | None = None) -> tuple[AcceleratorFacts, ...]:
    """Facts of every accelerator that CUDA_VISIBLE_DEVICES lets this process see, in that order."""
    library = _load()
    if library is None or library.nvmlInit_v2() != 0:
        return ()
    try:
        handles = _handles(library)
        visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
        chosen = range(len(handles)) if visible is None else select_visible(visible, [u for _, u in handles])
        found = [_facts(library, handles[index][0]) for index in chosen]
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


def _facts(library: ctypes.CDLL, handle: ctypes.c_void_p) -> AcceleratorFacts | None:
    memory = _Memory()
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        return None
    if library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)) != 0:
        return None
    return AcceleratorFacts(
        name=_string(library.nvmlDeviceGetName, handle),
        kind="cuda",
        capability=f"{major.value}.{minor.value}",
        memory_bytes=memory.total,
    )


def _string(function: ctypes._NamedFuncPointer, handle: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(_NAME_BYTES)
    return buffer.value.decode() if function(handle, buffer, _NAME_BYTES) == 0 else ""
