"""What every linear method of Triton kernels needs of a spec. Knows no kernel."""

from __future__ import annotations

from penstock.quantization.linear import LinearSpec
from penstock.types.facts import LEAST_CAPABILITY

COLUMN_MULTIPLE = 16  # so that every row begins where 16 bytes can be read at once


def reasons_against(spec: LinearSpec) -> list[str]:
    """Why Triton kernels cannot multiply here."""
    platform, reasons = spec.platform, []
    if platform.name != "cuda":
        reasons.append(f"needs platform cuda, found {platform.name}")
    elif platform.device and platform.device.compute_capability < LEAST_CAPABILITY:
        least = ".".join(map(str, LEAST_CAPABILITY))
        reasons.append(f"needs compute capability {least}, found {platform.device.capability}")
    if "triton" not in platform.libraries:
        reasons.append("needs triton, which is not installed")
    if spec.in_features % COLUMN_MULTIPLE:
        reasons.append(f"needs columns in multiples of {COLUMN_MULTIPLE}, found {spec.in_features}")
    return reasons
