"""Clients that are slow, idle, gone, or too many."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

from reliability.wire import Answer, Connection, Outcome, ask, get, load_of, num_aborted, post, until_idle

STREAM = {"prompt": "abc", "ignore_eos": True, "stream": True}
ANYWHERE = ("head", "body", "sent", "stream", "stream", "stream", "whole", "half-closed")
_TINY_BUFFER = 4096


def stream_of(max_tokens: int, **fields: Any) -> bytes:
    return post("/v1/completions", {**STREAM, "max_tokens": max_tokens, **fields})


def ending(answer: Answer) -> str:
    """How a stream ended: "done", the code of its error, or "cut" for one without a terminal message."""
    if answer.status != 200:
        return str(answer.status)
    events = answer.events
    terminals = [event for event in events if event == "[DONE]" or '"error"' in event]
    if not answer.complete or len(terminals) != 1 or events[-1] != terminals[0]:
        return "cut" if not terminals else f"{len(terminals)} ends"
    return "done" if terminals[0] == "[DONE]" else str(json.loads(terminals[0])["error"]["code"])


async def slow_senders(port: int, heads: int, bodies: int, seconds: float, pause_s: float) -> Outcome:
    """Heads and bodies that come a byte at a time: within ``seconds`` all are told so and closed."""
    outcome = Outcome()

    async def dribble(first: bytes) -> None:
        async with Connection(port) as connection:
            await connection.send(first)
            reading = asyncio.create_task(connection.answer(seconds=seconds))
            while not reading.done():
                await connection.send(b"a")
                await asyncio.wait((reading,), timeout=pause_s)
            answer = reading.result()
            outcome.add(str(answer.status))
            outcome.expect(answer.status == 408 and bool(answer.sentence), f"a slow sender got {answer.status}")

    head = b"GET /version HTTP/1.1\r\nhost: x\r\ny: "
    body = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
    await asyncio.gather(*(dribble(head) for _ in range(heads)), *(dribble(body) for _ in range(bodies)))
    return outcome


async def idle_connections(port: int, number: int, limit: int) -> Outcome:
    """``number`` connections that ask nothing; the server keeps ``limit`` at most, and answers somebody who asks."""
    outcome = Outcome()
    connections = []
    for _ in range(number):
        connection = Connection(port)
        await connection.__aenter__()
        connections.append(connection)
    answer = await ask(port, get("/health"))
    outcome.expect(answer.status == 200, f"/health answered {answer.status} beside {number} idle connections")
    ends = [asyncio.create_task(connection.reader.read()) for connection in connections]
    until = time.monotonic() + 20
    while sum(not end.done() for end in ends) > limit and time.monotonic() < until:
        await asyncio.sleep(0.05)
    for end in ends:
        outcome.add("closed" if end.done() else "kept")
        end.cancel()
    await asyncio.gather(*ends, return_exceptions=True)
    outcome.expect(outcome.counts["kept"] <= limit, f"{outcome.counts['kept']} idle connections are kept")
    for connection in connections:
        connection.writer.transport.abort()
    return outcome


async def busy_connections(port: int, limit: int, more: int) -> Outcome:
    """All connections stream; the next ones get 503 with a sentence, and the streams go on to their end."""
    outcome = Outcome()

    begun = 0

    async def stream() -> str:
        nonlocal begun
        async with Connection(port) as connection:
            await connection.send(stream_of(600))
            await connection.begun()
            begun += 1
            return ending(await connection.answer())

    streams = [asyncio.create_task(stream()) for _ in range(limit)]
    while begun < limit and not any(stream.done() for stream in streams):
        await asyncio.sleep(0.02)
    for _ in range(more):
        answer = await ask(port, get("/health"))
        outcome.add(str(answer.status))
        outcome.expect(answer.status == 503 and bool(answer.sentence), f"one too many got {answer.status}")
    for end in await asyncio.gather(*streams):
        outcome.add(end)
        outcome.expect(end == "done", f"a stream ended with {end}")
    return outcome


async def stopped_readers(port: int, number: int, max_tokens: int, seconds: float, **fields: Any) -> Outcome:
    """Streams whose clients read nothing: within ``seconds`` the server has reset all of their connections, as each
    client sees of its own socket, and keeps nothing of theirs."""
    outcome = Outcome()
    connections = [Connection(port, _TINY_BUFFER) for _ in range(number)]
    await asyncio.gather(*(connection.__aenter__() for connection in connections))
    for connection in connections:
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await connection.send(stream_of(max_tokens, **fields))
    for is_reset in await asyncio.gather(*(connection.reset_by_server(seconds) for connection in connections)):
        outcome.add("reset" if is_reset else "kept")
    outcome.expect(not outcome.counts["kept"], f"{outcome.counts['kept']} connections that nobody reads are kept")
    await until_idle(port, outcome, seconds)
    for connection in connections:
        connection.writer.transport.abort()
    return outcome


async def late_readers(port: int, number: int, max_tokens: int, pause_s: float, **fields: Any) -> Outcome:
    """Clients that read nothing for a while, and then all: a whole stream, or one that ends with why it is not."""
    outcome = Outcome()

    async def read() -> None:
        async with Connection(port, _TINY_BUFFER) as connection:
            await connection.send(stream_of(max_tokens, **fields))
            await asyncio.sleep(pause_s)
            end = ending(await connection.answer())
            outcome.add(end)
            outcome.expect(end in ("done", "reader_too_slow"), f"a late reader's stream ended with {end}")

    await asyncio.gather(*(read() for _ in range(number)))
    await until_idle(port, outcome)
    return outcome


async def unread_pipelines(port: int, number: int, requests: int, seconds: float) -> Outcome:
    """Clients that ask ``requests`` times for a large document on one connection and read nothing."""
    outcome = Outcome()

    async def pipeline() -> None:
        async with Connection(port, _TINY_BUFFER) as connection:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            connection.writer.write(get("/openapi.json") * requests)
            await asyncio.sleep(seconds)
            outcome.add("unread pipelines")

    await asyncio.gather(*(pipeline() for _ in range(number)))
    return outcome


async def disconnects(
    port: int,
    number: int,
    concurrency: int = 32,
    seed: int = 0,
    max_tokens: int = 500,
    patience_s: float = 0.2,
    places: tuple[str, ...] = ANYWHERE,
) -> Outcome:
    """Clients that leave: in a head, in a body, before and in a stream or a whole answer, with an end or a reset.

    ``places`` says where, and has those more often where more of them leave. When all of them leave in mid-stream, the
    server must say of each sequence that it was aborted.
    """
    outcome = Outcome()
    random_ = random.Random(seed)
    left = iter(range(number))
    begun = 0
    aborted_before = await num_aborted(port)

    async def client() -> None:
        for _ in left:
            await one(random_.choice(places))

    async def one(where: str) -> None:
        nonlocal begun
        async with Connection(port) as connection:
            num_choices = random_.choice((1, 1, 3))
            request = stream_of(max_tokens, n=num_choices)
            if where == "whole":
                request = post("/v1/completions", {**STREAM, "stream": False, "max_tokens": max_tokens})
            if where in ("head", "body"):
                cut = 30 if where == "head" else -10
                request = request[:cut]
            await connection.send(request)
            if where == "stream":
                read = await connection.reader.read(random_.randrange(1, 3000))
                outcome.expect(b"HTTP/1.1 200"[: len(read)] == read[:12] != b"", f"a stream began with {read[:99]!r}")
                begun += num_choices
            elif where == "whole":
                await asyncio.sleep(random_.random() * patience_s)
            elif where == "half-closed":
                connection.writer.write_eof()
                await asyncio.sleep(random_.random() * patience_s)
            if random_.random() < 0.5:
                connection.reset()
        outcome.add(where)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    await until_idle(port, outcome, 60)
    if set(places) == {"stream"}:
        aborted = await num_aborted(port) - aborted_before
        outcome.expect(aborted == begun, f"{begun} sequences were left in mid-stream, {aborted} were aborted")
        outcome.notes.append(f"{aborted} sequences aborted")
    answer = await ask(port, post("/v1/completions", {"prompt": "abc", "max_tokens": 3}))
    outcome.expect(answer.status == 200, f"after the disconnects a request got {answer.status}")
    return outcome


async def overload(port: int, number: int, max_tokens: int) -> Outcome:
    """All at once: each is answered whole or gets 429 with a time to come back, and none waits for ever."""
    outcome = Outcome()

    async def one() -> None:
        async with Connection(port) as connection:
            await connection.send(stream_of(max_tokens))
            answer = await connection.answer(seconds=120)
            end = ending(answer)
            outcome.add(end)
            fine = end == "done" or (end == "429" and "retry-after" in answer.headers and bool(answer.sentence))
            outcome.expect(fine, f"a request of many got {end}")

    await asyncio.gather(*(one() for _ in range(number)))
    await until_idle(port, outcome)
    return outcome


async def while_it_ends(
    port: int, number: int, max_tokens: int, end_it: Any, stream_end: str = "done", whole_end: str = "done"
) -> Outcome:
    """``number`` streams and as many whole answers are open when ``end_it()`` is called; more requests come until
    nobody listens. Each accepted request has exactly one end: ``stream_end``, or ``whole_end``, which is "done" or a
    status."""
    outcome = Outcome()

    async def stream() -> None:
        async with Connection(port) as connection:
            await connection.send(stream_of(max_tokens))
            end = ending(await connection.answer())
            outcome.add(f"stream {end}")
            outcome.expect(end == stream_end, f"a stream ended with {end}")

    async def whole() -> None:
        async with Connection(port) as connection:
            await connection.send(post("/v1/completions", {**STREAM, "stream": False, "max_tokens": max_tokens}))
            answer = await connection.answer()
            end = "done" if answer.status == 200 and answer.complete else str(answer.status)
            outcome.add(f"whole {end}")
            outcome.expect(end == whole_end, f"a whole answer got {end}: {answer.sentence}")

    async def latecomers() -> None:
        while True:
            try:
                async with Connection(port) as connection:
                    await connection.send(post("/v1/completions", {"prompt": "abc", "max_tokens": 1}))
                    answer = await connection.answer(seconds=10)
            except (ConnectionError, OSError):
                outcome.counts["latecomers refused by the system"] += 1
                return
            outcome.counts[f"latecomers {answer.status}"] += 1
            fine = answer.status in (200, 503, 0) and (answer.status != 503 or "retry-after" in answer.headers)
            outcome.expect(fine, f"a latecomer got {answer.status}")
            await asyncio.sleep(0.02)

    requests = [asyncio.create_task(one()) for _ in range(number) for one in (stream, whole)]
    while not any(one.done() for one in requests) and (await load_of(port))["num_open"] < 2 * number:
        await asyncio.sleep(0.02)
    late = asyncio.create_task(latecomers())
    end_it()
    await asyncio.gather(*requests)
    outcome.expect(outcome.number == 2 * number, f"{outcome.number} ends of {2 * number} requests")
    late.cancel()
    await asyncio.wait((late,))
    return outcome
