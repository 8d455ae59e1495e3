"""Implementation: one row of an op's table, and what it is asked. Pure facts; imports no kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penstock.types.decision import YES, Verdict
from penstock.types.facts import PlatformFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class OpSpec:
    """What an op is needed for. ``dtype`` is the torch dtype name of its activations, e.g. "bfloat16"."""

    dtype: str
    platform: PlatformFacts


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to run an op. Empty ``dtypes``, ``platforms`` or ``machine`` mean any; ``instruction_sets`` are all
    needed, and so are ``libraries``. ``needs_extension``: it is a kernel of the compiled extension."""

    name: str
    function: Callable[..., Any]
    dtypes: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    instruction_sets: tuple[str, ...] = ()
    machine: str = ""
    needs_extension: bool = False
    libraries: tuple[str, ...] = ()

    def can_run(self, spec: OpSpec, /) -> Verdict:
        reasons = []
        if self.dtypes and spec.dtype not in self.dtypes:
            reasons.append(f"needs dtype {' or '.join(self.dtypes)}, asked for {spec.dtype}")
        if self.platforms and spec.platform.name not in self.platforms:
            reasons.append(f"needs platform {' or '.join(self.platforms)}, found {spec.platform.name}")
        if self.machine and spec.platform.machine != self.machine:
            reasons.append(f"needs a {self.machine} processor, found {spec.platform.machine}")
        if self.needs_extension and spec.platform.extension_missing:
            reasons.append(spec.platform.extension_missing)
        reasons += [
            f"needs {name}, which is not installed" for name in self.libraries if name not in spec.platform.libraries
        ]
        missing = [name for name in self.instruction_sets if name not in spec.platform.instruction_sets]
        if missing:
            reasons.append(f"needs instruction sets {', '.join(missing)}, which the processor lacks")
        return Verdict(tuple(reasons)) if reasons else YES
