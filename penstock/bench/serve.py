"""HTTP load on an OpenAI-compatible server: a concurrency sweep (closed loop) or a request rate (open loop)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penstock.bench.added_latency import read_added_latency
from penstock.bench.http_load import Target, Trace
from penstock.bench.load_process import LoadOrder, run_load, run_processes, share_out
from penstock.bench.report import Report, spread
from penstock.bench.server_process import ProcessCost, read_cost

_BUSY = 0.8
"""Share of a core above which a process of the load generator may be what is measured."""

Prompts = Sequence[str] | Sequence[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeWorkload:
    """Closed loop: for each of ``concurrencies``, ``num_prompts`` requests (at least two per stream), never more than
    that many open; the next one is sent when one has ended.

    Open loop: for each of ``request_rates``, requests per second on average, ``num_prompts`` requests at moments drawn
    in advance (``load_process.LoadOrder`` says how from ``burstiness``), whatever the server does; at most
    ``concurrencies[0]`` are open where it is given. ``processes`` of the load generator share the work. An answer that
    takes longer than ``timeout_s`` is a failure.
    """

    concurrencies: tuple[int, ...] = (1, 8, 32)
    num_prompts: int = 64
    input_len: int = 128
    output_len: int = 64
    request_rates: tuple[float, ...] = ()
    burstiness: float = 1.0
    timeout_s: float = 600.0
    ignore_eos: bool = True
    processes: int = 1
    seed: int = 0


def measure_serve(
    target: Target,
    workload: ServeWorkload,
    prompts_for: Callable[[int, int], Prompts],
    command: str,
    progress: Callable[[str], None],
    engine: dict[str, Any] | None = None,
    pid: int | None = None,
) -> Report:
    """Run the sweep. ``prompts_for(number, seed)`` makes prompts; each level gets its own, so that a prefix cache
    sees nothing twice unless the prompts come from a file. ``pid`` is the server's process on this machine: its CPU
    time and memory are reported besides."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    target = replace(target, timeout_s=workload.timeout_s)
    for level, load in enumerate(_levels(workload)):
        progress(load.text)
        prompts = prompts_for(load.number, workload.seed + level + 1)
        before = read_cost(pid) if pid is not None else None
        added = read_added_latency(target)
        traces, elapsed, cpu_s = _run_level(target, workload, prompts, load)
        failed = [trace for trace in traces if not trace.ok]
        if failed:
            notes.append(f"{load.text}: {len(failed)} failed, first: {failed[0].error}")
        row = _row(load, [trace for trace in traces if trace.ok], len(failed), elapsed, cpu_s)
        if added is not None:
            row |= added.columns_since(read_added_latency(target))
        if before is not None and pid is not None:
            row |= _cost_columns(before, read_cost(pid), sum(trace.num_tokens for trace in traces))
        if cpu_s > _BUSY * elapsed * min(workload.processes, load.concurrency):
            notes.append(f"{load.text}: the load generator was busy; give it more --processes")
        rows.append(row)
    fields = {name: getattr(workload, name) for name in workload.__dataclass_fields__}
    return Report(
        name="serve",
        command=command,
        workload=fields | {"url": target.base_url, "endpoint": target.path},
        rows=tuple(rows),
        engine=engine or {},
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Load:
    """One row of the report."""

    text: str
    number: int
    concurrency: int
    request_rate: float | None = None


def _levels(workload: ServeWorkload) -> list[_Load]:
    number = workload.num_prompts
    if workload.request_rates:
        most = workload.concurrencies[0] if workload.concurrencies else number
        return [_Load(f"{rate:g} requests/s", number, most, rate) for rate in workload.request_rates]
    return [_Load(f"concurrency {most}", max(number, 2 * most), most) for most in workload.concurrencies]


def _run_level(
    target: Target, workload: ServeWorkload, prompts: Prompts, load: _Load
) -> tuple[list[Trace], float, float]:
    """Traces, seconds, and CPU seconds of the load generator."""
    extra = {"ignore_eos": True, "min_tokens": workload.output_len} if workload.ignore_eos else {}
    order = LoadOrder(
        target=target,
        bodies=tuple(target.body(prompt, workload.output_len, extra) for prompt in prompts),
        concurrency=load.concurrency,
        request_rate=load.request_rate,
        burstiness=workload.burstiness,
        seed=workload.seed,
    )
    orders = share_out(order, workload.processes)
    results = [run_load(order)] if len(orders) == 1 else run_processes(orders)
    traces = [trace for result in results for trace in result.traces]
    # Every process has its own clock, but they began together: the longest one's time is the run's.
    return traces, max(result.elapsed for result in results), sum(result.cpu_s for result in results)


def _row(load: _Load, traces: Sequence[Trace], num_failed: int, elapsed: float, cpu_s: float) -> dict[str, Any]:
    output_tokens = sum(trace.num_tokens for trace in traces)
    num_chunks = sum(len(trace.arrivals) for trace in traces)
    row: dict[str, Any] = {
        **({} if load.request_rate is None else {"request_rate": load.request_rate}),
        "concurrency": load.concurrency,
        "requests": len(traces),
        "failed": num_failed,
        "requests_per_s": round(len(traces) / elapsed, 3),
        "output_tokens_per_s": round(output_tokens / elapsed, 1),
        "tokens_per_chunk": round(output_tokens / num_chunks, 2) if num_chunks else 0.0,
        "client_cpu_share": round(cpu_s / elapsed, 2),
    }
    if load.request_rate is not None:  # otherwise nothing is due: a request is sent when a stream is free
        row |= spread("late_ms", [trace.started - trace.due for trace in traces])
    row |= spread("ttft_ms", [trace.ttft for trace in traces])
    row |= spread("tpot_ms", [trace.tpot for trace in traces if trace.tpot is not None])
    row |= spread("itl_ms", [gap for trace in traces for gap in trace.gaps])
    row |= spread("e2e_ms", [trace.e2e for trace in traces])
    return row


def _cost_columns(before: ProcessCost, after: ProcessCost, output_tokens: int) -> dict[str, Any]:
    """Of the server: CPU seconds per million output tokens, and the most memory it has held since it started."""
    per_million = 1e6 / output_tokens if output_tokens else math.nan
    return {
        "server_cpu_s_per_mtok": round((after.own_cpu_s - before.own_cpu_s) * per_million, 3),
        "children_cpu_s_per_mtok": round((after.others_cpu_s - before.others_cpu_s) * per_million, 3),
        "server_peak_mib": after.own_peak_bytes >> 20,
        "children_peak_mib": after.others_peak_bytes >> 20,
    }
