"""What every linear method of Triton kernels needs of a spec. Knows no kernel."""

from __future__ import annotations

from penstock.quantization.linear import LinearSpec

COLUMN_MULTIPLE = 16  # so that every row begins where 16 bytes can be read at once
MIN_CAPABILITY = (8, 0)


def capability_of(spec: LinearSpec) -> tuple[int, ...]:
    """Of the device that is computed on; (0,) where it has none that CUDA names."""
    device = spec.platform.device
    parts = device.capability.split(".") if device else []
    return tuple(map(int, parts)) if parts and all(part.isdigit() for part in parts) else (0,)


def reasons_against(spec: LinearSpec) -> list[str]:
    """Why Triton kernels cannot multiply here."""
    platform, reasons = spec.platform, []
    if platform.name != "cuda":
        reasons.append(f"needs platform cuda, found {platform.name}")
    elif platform.device and capability_of(spec) < MIN_CAPABILITY:
        reasons.append(f"needs compute capability 8.0, found {platform.device.capability}")
    if "triton" not in platform.libraries:
        reasons.append("needs triton, which is not installed")
    if spec.in_features % COLUMN_MULTIPLE:
        reasons.append(f"needs columns in multiples of {COLUMN_MULTIPLE}, found {spec.in_features}")
    return reasons
