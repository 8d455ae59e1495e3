"""Attacks servers of its own and says what came back: the figures of docs/reliability.md.

    python scripts/measure_reliability.py [--only NAME ...] [--share 1.0] [--model DIRECTORY]

Every attack has a server for itself (`penstock serve --mock`; the leaks also on a real model, by default a tiny random
one), and a client in a process of its own that asks for short streams all the time: its times say whether others are
disturbed. Memory is that of the frontend process. Exit code 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from reliability import bodies, clients, document, http, keys, templates
from reliability.server import MemoryWatch, Server, neighbour, percentile
from reliability.tiny import save_tiny_model
from reliability.wire import Outcome, load_of

CALM_S = 3.0
DISTURBED_S = 1.0
"""A short stream of another client takes no longer than this, at the 99th percentile, whatever the attack."""
MEBI = 1 << 20
MOCK = ("--mock", "--mock-time", "1ms", "--max-num-seqs", "256")
IN_ONE_QUEUE = ("overload",)
"""Attacks by mere number: the other client is one of many, waits as long as they do, and may be refused."""

HEADINGS = (
    "attack", "what", "number", "what came back", "memory MiB: before / peak / after", "left",
    "others p99 ms: calm / during", "s", "promise",
)  # fmt: skip

Attack = Callable[[Server, float], Awaitable[Outcome]]


@dataclass(frozen=True)
class Row:
    """``attack`` gets a server with ``options`` and the share of the full size; ``max_growth`` is of its memory."""

    name: str
    what: str
    attack: Attack
    options: tuple[str, ...] = MOCK
    max_growth: int = 256 * MEBI
    alone: bool = False  # the server ends, or its clients may all be refused: nobody else is there


def scaled(number: int, share: float) -> int:
    return max(2, round(number * share))


async def _sigterm(server: Server, share: float) -> Outcome:
    number = scaled(100, share)
    outcome = await clients.while_it_ends(server.port, number, 1500, server.signal)
    return _ended(server, outcome, 0)


async def _drain(server: Server, share: float) -> Outcome:
    begin = time.monotonic()
    number = scaled(100, share)
    outcome = await clients.while_it_ends(server.port, number, 20_000, server.signal, "shutting_down", "503")
    outcome.expect(time.monotonic() - begin < 30, "draining took longer than its limit")
    return _ended(server, outcome, 0)


async def _death(server: Server, share: float) -> Outcome:
    number = scaled(100, share)
    outcome = await clients.while_it_ends(server.port, number, 3000, lambda: None, "engine_dead", "503")
    server.signal()
    return _ended(server, outcome, 1)


def _ended(server: Server, outcome: Outcome, expected: int) -> Outcome:
    code = server.wait()
    outcome.expect(code == expected, f"exit code {code}, expected {expected}")
    outcome.notes.append(f"exit code {code}")
    return outcome


async def _document(server: Server, share: float) -> Outcome:
    return await asyncio.to_thread(document.whole_document, server.port, scaled(100, share))


async def _keys(server: Server, share: float) -> Outcome:
    outcome = await keys.keys_on_all_routes(server.port, "first")
    stored = await keys.stored_by_another(server.port, "first", "second")
    outcome.number += stored.number
    outcome.counts += stored.counts
    outcome.broken += stored.broken
    return outcome


LONG = ("--max-model-len", "16384", "--kv-cache-memory", "1GiB")
LIMITED = (*MOCK, *LONG, "--stall-timeout", "10", "--max-unread-bytes", "1MiB")
ROWS = (
    Row("document", "requests by schemathesis, whole OpenAPI document", _document,
        (*MOCK, "--max-model-len", "128", "--request-timeout", "10")),
    Row("bodies", "malformed bodies over all routes with one",
        lambda server, share: bodies.malformed_bodies(server.port, scaled(10_000, share)),
        (*MOCK, "--max-model-len", "128")),
    Row("giants", "requests for too much", lambda server, _: bodies.giant_requests(server.port), max_growth=512 * MEBI),
    Row("wrong HTTP", "ambiguous or broken HTTP", lambda server, _: http.wrong_http(server.port)),
    Row("rare HTTP", "rare but right HTTP", lambda server, _: http.right_http(server.port)),
    Row("constraints", "hostile regexes, schemas, grammars", lambda server, _: bodies.hostile_constraints(server.port)),
    Row("templates", "hostile chat templates", lambda server, _: templates.hostile_requests(server.port),
        (*MOCK, "--chat-template", "{hostile}")),
    Row("keys", "routes with no, wrong and right keys", _keys, (*MOCK, "--api-key", "first", "--api-key", "second")),
    Row("slow senders", "heads and bodies, a byte every 0.5 s",
        lambda server, share: clients.slow_senders(server.port, scaled(1000, share), scaled(500, share), 60, 0.5)),
    Row("idle", "connections that ask nothing",
        lambda server, share: clients.idle_connections(server.port, scaled(6000, share), 4096)),
    Row("busy", "streams on all connections, and more",
        lambda server, share: clients.busy_connections(server.port, 100, scaled(200, share)),
        (*MOCK, "--max-connections", "100", "--mock-time", "20ms"), alone=True),
    Row("stopped readers", "clients that read nothing, 20 logprobs a token",
        lambda server, share: clients.stopped_readers(server.port, scaled(64, share), 15_000, 120, logprobs=20),
        LIMITED),
    Row("late readers", "readers that begin after 5 s",
        lambda server, share: clients.late_readers(server.port, scaled(64, share), 8000, 5, logprobs=5), LIMITED),
    Row("unread pipelines", "clients that pipeline 1,000 requests unread",
        lambda server, share: clients.unread_pipelines(server.port, scaled(64, share), 1000, 8)),
    Row("disconnects", "connects and disconnects",
        lambda server, share: clients.disconnects(server.port, scaled(2000, share))),
    Row("real disconnects", "the same on a real model with KV blocks",
        lambda server, share: clients.disconnects(server.port, scaled(2000, share), max_tokens=200), ("{model}",)),
    Row("disconnects in mid-stream", "streams whose clients leave in them",
        lambda server, share: clients.disconnects(
            server.port, scaled(2000, share), max_tokens=1500, places=("stream",))),
    Row("real disconnects in mid-stream", "the same on a real model with KV blocks",
        lambda server, share: clients.disconnects(server.port, scaled(2000, share), max_tokens=900, places=("stream",)),
        ("{model}",)),
    Row("overload", "streams at once, 256 may be open",
        lambda server, share: clients.overload(server.port, scaled(2000, share), 100),
        (*MOCK, "--max-queue", "256", "--mock-time", "5ms")),
    Row("sigterm", "open requests at SIGTERM", _sigterm, (*MOCK, *LONG), alone=True),
    Row("drain", "open requests at SIGTERM, 2 s to drain", _drain,
        (*MOCK, "--max-model-len", "32768", "--kv-cache-memory", "4GiB", "--drain-timeout", "2"), alone=True),
    Row("death", "open requests when the engine dies", _death, (*MOCK, *LONG, "--mock-fault", "die=1500"), alone=True),
)  # fmt: skip


@dataclass
class Measured:
    row: Row
    outcome: Outcome
    memory: tuple[float, float, float]  # MiB before, at the peak, after
    calm: float  # ms, 99th percentile of the other client
    during: float
    seconds: float


async def measure(row: Row, share: float, places: dict[str, str]) -> Measured:
    options = tuple(option.format(**places) if option.startswith("{") else option for option in row.options)
    with Server(*options) as server:
        key = "first" if "--api-key" in row.options else ""
        calm: list[float] = []
        during: list[float] = []
        begin = time.monotonic()
        if row.alone:
            with MemoryWatch(server) as memory:
                outcome = await row.attack(server, share)
        else:
            with neighbour(server.port, key) as other:
                await asyncio.sleep(1.0)
                other.take()
                await asyncio.sleep(CALM_S)
                calm, _ = other.take()
                begin = time.monotonic()
                with MemoryWatch(server) as memory:
                    outcome = await row.attack(server, share)
                    during, failed = await asyncio.to_thread(other.take)
                outcome.expect(row.name in IN_ONE_QUEUE or not failed, f"{failed} requests of another client failed")
        seconds = time.monotonic() - begin
        if not row.alone:
            load = await load_of(server.port, key)
            outcome.expect(not load["health"], f"the engine is not well: {load['health']}")
        growth = memory.peak - memory.before
        if not row.alone:
            outcome.expect(growth <= row.max_growth, f"memory grew by {growth // MEBI} MiB")
        slow = percentile(during, 0.99)
        undisturbed = row.name in IN_ONE_QUEUE or not slow > DISTURBED_S
        outcome.expect(undisturbed, f"others waited {slow:.2f} s at the 99th percentile")
        outcome.broken += [f"log: {line.strip()}" for line in server.log if "Traceback" in line]
    sizes = (memory.before / MEBI, memory.peak / MEBI, memory.after / MEBI)
    return Measured(row, outcome, sizes, 1000 * percentile(calm, 0.99), 1000 * slow, seconds)


def line_of(one: Measured) -> str:
    counts = ", ".join(f"{what} {number}" for what, number in sorted(one.outcome.counts.items()))
    before, peak, after = one.memory
    memory = f"{before:.0f} / {peak:.0f} / {after:.0f}" if not one.row.alone else f"{before:.0f} / {peak:.0f}"
    others = "nobody else" if one.row.alone else f"{one.calm:.0f} / {one.during:.0f}"
    left = "; ".join(one.outcome.notes)
    state = "kept" if not one.outcome.broken else "BROKEN"
    cells = (
        one.row.name,
        one.row.what,
        str(one.outcome.number),
        counts,
        memory,
        left,
        others,
        f"{one.seconds:.0f}",
        state,
    )
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[row.name for row in ROWS], help="these attacks alone")
    parser.add_argument("--share", type=float, default=1.0, help="of the full size")
    parser.add_argument("--model", help="directory of the real model; default: a tiny random one")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if not arguments.only or row.name in arguments.only]
    print(f"{platform.machine()}, Python {platform.python_version()}, share {arguments.share:g}\n")
    print(f"| {' | '.join(HEADINGS)} |")
    print("|---" * len(HEADINGS) + "|", flush=True)
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        places = {"model": arguments.model or "", "hostile": templates.save_hostile(Path(directory))}
        if not arguments.model and any("{model}" in row.options for row in rows):
            places["model"] = save_tiny_model(Path(directory) / "tiny")
        for row in rows:
            measured = asyncio.run(measure(row, arguments.share, places))
            print(line_of(measured), flush=True)
            broken += [f"{row.name}: {sentence}" for sentence in measured.outcome.broken]
    for sentence in broken[:100]:
        print(f"BROKEN {sentence}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
