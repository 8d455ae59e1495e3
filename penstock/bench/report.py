"""What a benchmark leaves behind: a table for people, JSON with facts and decisions for machines, a plot on request."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError
from penstock.types.facts import EngineInfo

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One benchmark run. ``rows`` are the table; units stand in the names of the keys."""

    name: str
    command: str
    workload: dict[str, Any]
    rows: tuple[dict[str, Any], ...]
    engine: dict[str, Any] = field(default_factory=dict)  # facts and decisions; empty for a foreign server
    notes: tuple[str, ...] = ()
    taken_at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    def as_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)

    def save(self, path: Path) -> None:
        try:
            path.write_text(self.as_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"Cannot write the report to {path}: {error.strerror}.") from error

    def plot(self, path: Path, *, x: str, ys: Sequence[str]) -> None:
        """One panel per column of ``ys`` over column ``x``, as PNG or SVG by the file's ending. Needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ConfigError("Install matplotlib to draw plots: pip install 'penstock[reports]'.") from error
        figure = Figure(figsize=(4.2 * len(ys), 3.4), layout="constrained")
        for i, y in enumerate(ys):
            axes = figure.add_subplot(1, len(ys), i + 1)
            axes.plot([row[x] for row in self.rows], [row[y] for row in self.rows], marker="o")
            axes.set_xlabel(x)
            axes.set_title(y)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        figure.suptitle(f"{self.name}: {self.engine.get('model', {}).get('name', '')} {self.taken_at}")
        figure.savefig(path, dpi=110)


def engine_record(info: EngineInfo) -> dict[str, Any]:
    """The facts and decisions of an engine, as plain data for a report."""
    return dataclasses.asdict(info)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` percent of the values lie, linearly interpolated; NaN for none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = math.floor(place)
    high = math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(name: str, values: Sequence[float], *, scale: float = 1000.0) -> dict[str, float]:
    """Columns ``name mean``, ``name p50`` and so on; by default seconds become milliseconds."""
    mean = statistics.fmean(values) * scale if values else math.nan
    return {f"{name}_mean": round(mean, 3)} | {
        f"{name}_p{share}": round(percentile(values, share) * scale, 3) for share in PERCENTILES
    }
