"""What a server process costs, read from Linux's /proc: CPU seconds and memory of it and of its children."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import ConfigError

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessCost:
    """Seconds of user and system time so far, and bytes of the largest resident set. ``own`` is the process alone,
    the others are its children and theirs."""

    own_cpu_s: float
    others_cpu_s: float
    own_peak_bytes: int
    others_peak_bytes: int


def read_cost(pid: int) -> ProcessCost:
    """Raises ConfigError when there is no such process, or no /proc."""
    try:
        own = _cpu(pid), _peak(pid)
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"--pid {pid} is not a process whose costs can be read here: {error}.") from error
    cpu, peak = 0.0, 0
    for child in _descendants(pid):
        try:
            cpu += _cpu(child)
            peak += _peak(child)
        except (OSError, ValueError, IndexError):  # it has just ended
            continue
    return ProcessCost(own[0], cpu, own[1], peak)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on: the name before them may contain anything."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _cpu(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak(pid: int) -> int:
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
            except (OSError, ValueError, IndexError):
                continue
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found
