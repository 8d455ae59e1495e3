"""Typed commands that change an executor or an engine between steps, and their replies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResetPrefixCache:
    """Forget every cached block that no request uses."""


@dataclass(frozen=True, slots=True)
class CheckIntegrity:
    """Run the core's invariants; the reply is not ok when one does not hold."""


ControlCommand = ResetPrefixCache | CheckIntegrity


@dataclass(frozen=True, slots=True)
class ControlReply:
    ok: bool = True
    message: str = ""
