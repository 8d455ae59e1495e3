"""What a frontend adds to its engine's own time, read from a Penstock server's metrics: no other server has it."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import dataclass
from typing import Any

from penstock.bench.http_load import Target

_BUCKET = re.compile(r"^\w+:frontend_added_latency_seconds_bucket\{.*?le=\"([^\"]+)\".*?\} (\S+)$", re.MULTILINE)
_SHARES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class AddedLatency:
    """Tokens counted so far by upper bound, in seconds; the last bound is infinity."""

    bounds: tuple[float, ...]
    totals: tuple[float, ...]  # at most the bound, so that they rise

    def columns_since(self, later: AddedLatency | None) -> dict[str, Any]:
        """Percentiles of the tokens counted between this and ``later``, in milliseconds, straight lines being assumed
        inside a bucket; nothing when there were none."""
        if later is None or later.bounds != self.bounds:
            return {}
        totals = [after - before for before, after in zip(self.totals, later.totals, strict=True)]
        if not totals or not totals[-1]:
            return {}
        return {f"added_ms_p{share}": round(1000 * self._at(totals, share / 100), 3) for share in _SHARES}

    def _at(self, totals: list[float], share: float) -> float:
        wanted = share * totals[-1]
        below, low = 0.0, 0.0
        for bound, total in zip(self.bounds, totals, strict=True):
            if total >= wanted and total > below:
                return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (total - below)
            below, low = total, bound
        return low


def read_added_latency(target: Target) -> AddedLatency | None:
    """None for a server that does not tell."""
    host, port = target.address
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    request = urllib.request.Request(f"http://{host}:{port}/metrics", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read().decode()
    except (OSError, ValueError):
        return None
    found = [(float(bound), float(total)) for bound, total in _BUCKET.findall(text)]
    return AddedLatency(*map(tuple, zip(*found, strict=True))) if found else None
