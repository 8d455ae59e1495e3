"""One process of load on a server: its share of the requests, closed loop or at a rate, and what it cost.

``run_load`` runs it here. ``run_processes`` runs several at the same time, each an interpreter of its own, so that the
load generator is not what is measured; they say when they are ready, and begin together.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from penstock.bench.http_load import Client, Target, Trace
from penstock.errors import ConfigError

_BOOT = (
    "import json,sys;sys.path[:]=json.loads(sys.stdin.buffer.readline());"
    "from penstock.bench.load_process import main;main()"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """What one process does: ``concurrency`` requests at a time, and ``request_rate`` new ones a second on average.

    Gaps between them are drawn from a gamma distribution of shape ``burstiness``: 1 are Poisson arrivals, less is more
    bursty, much more is even. A request for which no stream is free waits, and is then late.
    """

    target: Target
    bodies: tuple[bytes, ...]
    concurrency: int
    request_rate: float | None = None
    burstiness: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LoadResult:
    traces: list[Trace]
    elapsed: float  # seconds from the first request to the last answer
    cpu_s: float  # user and system time of the process meanwhile


def run_load(order: LoadOrder) -> LoadResult:
    """Send every request and wait for every answer."""
    from penstock.frontend.server import loop_factory

    before, started = _cpu_seconds(), time.perf_counter()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        traces = runner.run(_run(order))
    return LoadResult(traces, time.perf_counter() - started, _cpu_seconds() - before)


async def _run(order: LoadOrder) -> list[Trace]:
    client = Client(order.target)
    gate = asyncio.Semaphore(order.concurrency)
    arrivals = random.Random(order.seed)

    async def one(body: bytes, due: float) -> Trace:
        try:
            trace = await client.send(body)
            trace.due = due
            return trace
        finally:
            gate.release()

    tasks = []
    due = time.perf_counter()
    for body in order.bodies:
        if order.request_rate:
            due += arrivals.gammavariate(
                order.burstiness, 1 / (order.request_rate * order.burstiness)
            )  # a schedule that a late sender catches up with
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await gate.acquire()
        tasks.append(asyncio.create_task(one(body, due if order.request_rate else 0.0)))
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        client.close()


def share_out(order: LoadOrder, number: int) -> list[LoadOrder]:
    """The same load from ``number`` processes: bodies in turn, concurrency and rate divided. Never more processes than
    streams."""
    number = max(1, min(number, order.concurrency))
    shares = []
    for index in range(number):
        streams = order.concurrency // number + (index < order.concurrency % number)
        rate = order.request_rate / number if order.request_rate else None
        shares.append(
            LoadOrder(
                target=order.target,
                bodies=order.bodies[index::number],
                concurrency=streams,
                request_rate=rate,
                burstiness=order.burstiness,
                seed=order.seed * number + index,
            )
        )
    return shares


def run_processes(orders: Sequence[LoadOrder]) -> list[LoadResult]:
    """One process per order, begun together. Raises ConfigError when one of them fails."""
    processes = [
        subprocess.Popen([sys.executable, "-c", _BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in orders
    ]
    try:
        for process, order in zip(processes, orders, strict=True):
            assert process.stdin is not None
            encoded = msgspec.msgpack.encode(order)
            process.stdin.write(json.dumps(sys.path).encode() + b"\n" + b"%d\n" % len(encoded) + encoded)
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        results = []
        for process in processes:
            assert process.stdout is not None
            results.append(msgspec.msgpack.decode(process.stdout.read(), type=LoadResult))
        return results
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"A process of the load generator ended early ({error}); see what it wrote.") from error
    finally:
        for process in processes:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    """A child of ``run_processes``: an order on standard input, "ready" on standard output, the result after "go"."""
    source = sys.stdin.buffer
    # Not sys.stdout.buffer: where PYTHONUNBUFFERED is set that is a raw file, which may write a part and say so.
    target = open(sys.stdout.fileno(), "wb", closefd=False)  # noqa: SIM115 - open as long as the process
    order = msgspec.msgpack.decode(source.read(int(source.readline())), type=LoadOrder)
    target.write(b"ready\n")
    target.flush()
    if source.readline():
        target.write(msgspec.msgpack.encode(run_load(order)))
        target.flush()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
