"""What is compiled ahead of time, and for which targets. Knows no kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AotCase:
    """One configuration of one kernel. ``signature`` gives the type of every argument that is not a constexpr, as
    Triton writes them ("*bf16", "*i64", "fp32", "i32"); ``constants`` the values of those that are."""

    kernel: Any  # triton.JITFunction
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
