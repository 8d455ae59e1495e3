"""Typed commands that change an executor or an engine between steps, and their replies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResetPrefixCache:
    """Forget every cached block that no request uses."""


@dataclass(frozen=True, slots=True)
class CheckIntegrity:
    """Run the core's invariants; the reply is not ok when one does not hold."""


@dataclass(frozen=True, slots=True)
class TimeKernels:
    """Answer the kernel times that were taken since the last such command, and take them from now on, or no longer.

    Only kernels of recorded steps are timed one by one; each costs a step two readings of the clock more.
    """

    enabled: bool = True


ControlCommand = ResetPrefixCache | CheckIntegrity | TimeKernels


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel in the recorded steps of ``num_tokens`` tokens that were timed: its calls in a step, and the median
    over ``steps`` steps of the seconds that they took together."""

    name: str
    num_tokens: int
    steps: int
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ControlReply:
    ok: bool = True
    message: str = ""
    kernel_times: tuple[KernelTime, ...] = ()
