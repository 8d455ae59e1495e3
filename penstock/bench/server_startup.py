"""Time from the start of a `penstock serve` process until it answers, and what that cost: in new processes.

``/health`` answers as soon as the socket is bound and the application stands, ``/ready`` when a request would be taken.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.bench.report import Report
from penstock.bench.server_process import read_cost
from penstock.errors import ConfigError

_PAUSE_S = 0.005
_PATIENCE_S = 600.0
_STOP_S = 30.0


@dataclass(frozen=True, slots=True)
class _Start:
    health_s: float
    ready_s: float
    cpu_s: float
    peak_bytes: int


def measure_server_startup(
    model: str, options: Sequence[str], repeats: int, command: str, progress: Callable[[str], None]
) -> Report:
    """``options`` go to `penstock serve` as they are. CPU time and memory are those of all its processes until
    ``/ready`` answers 200. Raises ConfigError with what the process said when it ends before that."""
    starts: list[_Start] = []
    for repeat in range(repeats):
        progress(f"repeat {repeat + 1} of {repeats}")
        starts.append(_start(model, options))
    rows = [
        {
            "repeat": number,
            "health_s": round(one.health_s, 3),
            "ready_s": round(one.ready_s, 3),
            "cpu_s": round(one.cpu_s, 2),
            "resident_mib": one.peak_bytes >> 20,
        }
        for number, one in enumerate(starts, 1)
    ]
    health = statistics.median(one.health_s for one in starts)
    ready = statistics.median(one.ready_s for one in starts)
    return Report(
        name="server startup",
        command=command,
        workload={"model": model, "options": " ".join(options), "repeats": repeats},
        rows=tuple(rows),
        notes=(f"median: {health:.2f} s from the start of the process to /health, {ready:.2f} s to /ready",),
    )


def _start(model: str, options: Sequence[str]) -> _Start:
    port = _free_port()
    line = [sys.executable, "-m", "penstock.cli", "serve", model, "--port", str(port), *options]
    began = time.perf_counter()
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            health = _wait(process, port, "/health") - began
            ready = _wait(process, port, "/ready") - began
            cost = read_cost(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            process.kill()
    return _Start(health, ready, cost.own_cpu_s + cost.others_cpu_s, cost.own_peak_bytes + cost.others_peak_bytes)


def _wait(process: subprocess.Popen[bytes], port: int, path: str) -> float:
    """When the route answered 200."""
    end = time.perf_counter() + _PATIENCE_S
    while time.perf_counter() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return time.perf_counter()
        if process.poll() is not None:
            assert process.stderr is not None
            said = process.stderr.read().decode(errors="replace").strip().removeprefix("penstock: ")
            raise ConfigError(f"penstock serve failed: {said or 'it said nothing'}")
        time.sleep(_PAUSE_S)
    raise ConfigError(f"penstock serve did not answer at {path} within {_PATIENCE_S:.0f} s.")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
