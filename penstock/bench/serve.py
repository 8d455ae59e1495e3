"""HTTP load on an OpenAI-compatible server: a concurrency sweep (closed loop) or a request rate (open loop)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.bench.http_load import Target, Trace, send
from penstock.bench.report import Report, spread

Prompts = Sequence[str] | Sequence[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeWorkload:
    """For each concurrency: ``num_prompts`` requests (at least two per stream), never more than that many open.

    ``request_rate`` (requests per second, Poisson arrivals) caps how fast they are sent besides.
    """

    concurrencies: tuple[int, ...] = (1, 8, 32)
    num_prompts: int = 64
    input_len: int = 128
    output_len: int = 64
    request_rate: float | None = None
    ignore_eos: bool = True
    seed: int = 0


def measure_serve(
    target: Target,
    workload: ServeWorkload,
    prompts_for: Callable[[int, int], Prompts],
    command: str,
    progress: Callable[[str], None],
    engine: dict[str, Any] | None = None,
) -> Report:
    """Run the sweep. ``prompts_for(number, seed)`` makes prompts; each level gets its own, so that a prefix cache
    sees nothing twice unless the prompts come from a file."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for level, concurrency in enumerate(workload.concurrencies):
        progress(f"concurrency {concurrency}")
        number = max(workload.num_prompts, 2 * concurrency)
        prompts = prompts_for(number, workload.seed + level + 1)
        traces, elapsed = asyncio.run(_run_level(target, workload, prompts, concurrency))
        failed = [trace for trace in traces if not trace.ok]
        if failed:
            notes.append(f"concurrency {concurrency}: {len(failed)} failed, first: {failed[0].error}")
        rows.append(_row(concurrency, [trace for trace in traces if trace.ok], len(failed), elapsed))
    fields = {name: getattr(workload, name) for name in workload.__dataclass_fields__}
    return Report(
        name="serve",
        command=command,
        workload=fields | {"url": target.base_url, "endpoint": target.path},
        rows=tuple(rows),
        engine=engine or {},
        notes=tuple(notes),
    )


async def _run_level(
    target: Target, workload: ServeWorkload, prompts: Prompts, concurrency: int
) -> tuple[list[Trace], float]:
    extra = {"ignore_eos": True, "min_tokens": workload.output_len} if workload.ignore_eos else {}
    bodies = [target.body(prompt, workload.output_len, extra) for prompt in prompts]
    gate = asyncio.Semaphore(concurrency)
    arrivals = random.Random(workload.seed)

    async def one(body: bytes) -> Trace:
        try:
            return await send(target, body)
        finally:
            gate.release()

    started = time.perf_counter()
    tasks = []
    for body in bodies:
        if workload.request_rate:
            await asyncio.sleep(arrivals.expovariate(workload.request_rate))
        await gate.acquire()
        tasks.append(asyncio.create_task(one(body)))
    traces = await asyncio.gather(*tasks)
    return list(traces), time.perf_counter() - started


def _row(concurrency: int, traces: Sequence[Trace], num_failed: int, elapsed: float) -> dict[str, Any]:
    output_tokens = sum(trace.num_tokens for trace in traces)
    num_chunks = sum(len(trace.arrivals) for trace in traces)
    row: dict[str, Any] = {
        "concurrency": concurrency,
        "requests": len(traces),
        "failed": num_failed,
        "requests_per_s": round(len(traces) / elapsed, 3),
        "output_tokens_per_s": round(output_tokens / elapsed, 1),
        "tokens_per_chunk": round(output_tokens / num_chunks, 2) if num_chunks else 0.0,
    }
    row |= spread("ttft_ms", [trace.ttft for trace in traces])
    row |= spread("tpot_ms", [trace.tpot for trace in traces if trace.tpot is not None])
    row |= spread("itl_ms", [gap for trace in traces for gap in trace.gaps])
    row |= spread("e2e_ms", [trace.e2e for trace in traces])
    return row
