"""CPU and memory limits of this process from control groups, version 1 and 2.

It knows two file layouts and no policy. ``root`` is "/" except in tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_FROM = 1 << 60  # version 1 writes "no limit" as a number near 2**63, rounded to pages


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """``cpus`` is the CPU quota in cores, ``memory_bytes`` the memory limit, ``memory_used_bytes`` what is charged
    against that limit and cannot be reclaimed as page cache. None: no limit found."""

    cpus: float | None = None
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None


def read_limits(root: Path = Path("/")) -> CgroupLimits:
    """The tightest limits on the way from this process's groups to the root; none when there are no groups."""
    cpus: float | None = None
    memory: tuple[int, int | None] | None = None
    for directory in _directories(root, "cpu"):
        quota = _cpu_quota(directory)
        if quota is not None:
            cpus = quota if cpus is None else min(cpus, quota)
    for directory in _directories(root, "memory"):
        limit = _memory_limit(directory)
        if limit is not None and (memory is None or limit < memory[0]):
            memory = (limit, _memory_used(directory))
    if memory is None:
        return CgroupLimits(cpus)
    return CgroupLimits(cpus, *memory)


def _directories(root: Path, controller: str) -> Iterator[Path]:
    """Directories of the process's group and of its ancestors, as far as they are visible.

    Inside a container the group's path may be the host's, which does not exist here; the mount point is then the
    container's own group.
    """
    text = _text(root / "proc/self/cgroup")
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            base = root / "sys/fs/cgroup" / controllers
            if not base.is_dir():
                base = root / "sys/fs/cgroup" / controller
        else:
            continue
        group = Path(path.lstrip("/"))
        for part in (group, *group.parents):
            if (base / part).is_dir():
                yield base / part


def _cpu_quota(directory: Path) -> float | None:
    parts = _text(directory / "cpu.max").split()
    if not parts:
        parts = [_text(directory / "cpu.cfs_quota_us"), _text(directory / "cpu.cfs_period_us")]
    try:
        quota, period = (int(part) for part in parts)
    except ValueError:  # "max", or files that are not there
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory_limit(directory: Path) -> int | None:
    limit = _number(directory / "memory.max")
    if limit is None:
        limit = _number(directory / "memory.limit_in_bytes")
    return limit if limit is not None and limit < _UNLIMITED_FROM else None


def _memory_used(directory: Path) -> int | None:
    used = _number(directory / "memory.current")
    if used is None:
        used = _number(directory / "memory.usage_in_bytes")
    if used is None:
        return None
    for line in _text(directory / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == "inactive_file" and value.isdigit():
            return max(0, used - int(value))
    return used


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
