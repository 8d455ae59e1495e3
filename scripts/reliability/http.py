"""HTTP that is wrong, ambiguous or for another protocol: refused with a sentence, and never read as two requests."""

from __future__ import annotations

import asyncio

from reliability.wire import Connection, Outcome, get, post

_P = b"POST /tokenize HTTP/1.1\r\nhost: x\r\n"
_G = b"GET /version HTTP/1.1\r\nhost: x\r\n"
_BODY = b'{"prompt":"abc"}'
_CHUNKED = b"transfer-encoding: chunked\r\n\r\n"

WRONG: dict[str, bytes] = {
    "length and chunks": _P + b"content-length: 5\r\n" + _CHUNKED + b"0\r\n\r\nGET /health HTTP/1.1\r\n\r\n",
    "chunks and length": _P + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": _P + b"content-length: 16\r\ncontent-length: 3\r\n\r\n" + _BODY,
    "two equal lengths": _P + b"content-length: 16\r\ncontent-length: 16\r\n\r\n" + _BODY,
    "a list of lengths": _P + b"content-length: 16, 16\r\n\r\n" + _BODY,
    "a length with a sign": _P + b"content-length: +16\r\n\r\n" + _BODY,
    "a length below zero": _P + b"content-length: -1\r\n\r\n",
    "a length in hexadecimal": _P + b"content-length: 0x10\r\n\r\n" + _BODY,
    "a length of 25 digits": _P + b"content-length: " + b"9" * 25 + b"\r\n\r\n",
    "a space before the colon": _P + b"content-length : 16\r\n\r\n" + _BODY,
    "an unknown coding": _P + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity as coding": _P + b"transfer-encoding: identity\r\n\r\n" + _BODY,
    "chunked twice": _P + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked, then another": _P + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a chunk size that is none": _P + _CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
    "a chunk size with 0x": _P + _CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "a chunk size below zero": _P + _CHUNKED + b"-1\r\n\r\n",
    "a chunk size of 20 digits": _P + _CHUNKED + b"F" * 20 + b"\r\nabc",
    "a chunk that is too long": _P + _CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n",
    "bare line feeds": b"GET /version HTTP/1.1\nhost: x\n\n",
    "bare line feeds in chunks": _P + _CHUNKED + b"3\nabc\n0\n\n",
    "a bare carriage return": b"GET /version HTTP/1.1\r\nhost: x\ry: z\r\n\r\n",
    "a header over two lines": _G + b"y: a\r\n b\r\n\r\n",
    "NUL in a header's name": _G + b"y\0: z\r\n\r\n",
    "NUL in a header's value": _G + b"y: a\0b\r\n\r\n",
    "no name": _G + b": y\r\n\r\n",
    "no colon": _G + b"abc\r\n\r\n",
    "no host": b"GET /version HTTP/1.1\r\n\r\n",
    "two hosts": _G + b"host: y\r\n\r\n",
    "a space in the path": b"GET /ver sion HTTP/1.1\r\nhost: x\r\n\r\n",
    "bytes above 127 in the path": b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    "a method that is none": b"FROB /version HTTP/1.1\r\nhost: x\r\n\r\n",
    "a method in lower case": b"get /version HTTP/1.1\r\nhost: x\r\n\r\n",
    "version 1.2": b"GET /version HTTP/1.2\r\nhost: x\r\n\r\n",
    "version 9.9": b"GET /version HTTP/9.9\r\nhost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "an SSH greeting": b"SSH-2.0-OpenSSH_9.0\r\n",
    "zeros": b"\0" * 4096,
    "a head of 1 MiB": _G + b"y: " + b"a" * (1 << 20) + b"\r\n\r\n",
    "20,000 headers": _G + b"".join(b"y%d: z\r\n" % i for i in range(20_000)) + b"\r\n",
    "a path of 1 MiB": b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    "chunk extensions of 1 MiB": _P + _CHUNKED + b"3;" + b"e" * (1 << 20) + b"\r\nabc\r\n0\r\n\r\n",
    "trailers of 1 MiB": _P + _CHUNKED + b"0\r\n" + b"".join(b"t%d: v\r\n" % i for i in range(80_000)) + b"\r\n",
    "a body that is compressed": post("/tokenize", b"\x1f\x8b\x08\x00" + b"\0" * 64, "content-encoding: gzip"),
    "a body larger than any": _P + b"content-length: 999999999999\r\n\r\n" + b"a" * 100_000,
    "an unknown expectation with a broken body": post("/tokenize", b"{", "expect: 200-maybe"),
    "a tunnel": b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n\x16\x03\x01",
    "a path behind a host that is none": b"GET http://[/version HTTP/1.1\r\nhost: x\r\n\r\n",
    "a path of another server": b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n",
    "a path with escapes": b"GET /page/%2e%2e/%2e%2e/routes/table.py HTTP/1.1\r\nhost: x\r\n\r\n",
    "options of everything": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    "trace": b"TRACE /version HTTP/1.1\r\nhost: x\r\n\r\n",
}
RIGHT: dict[str, tuple[bytes, bytes]] = {
    "chunks with extensions": (_P + _CHUNKED + b'10;a="b;c"\r\n' + _BODY + b"\r\n0;x\r\n\r\n", b'"count":3'),
    "chunks of one byte": (
        _P + _CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in _BODY) + b"0\r\n\r\n", b'"count":3'
    ),
    "trailers": (_P + _CHUNKED + b"10\r\n" + _BODY + b"\r\n0\r\nhost: y\r\nx-api-key: z\r\n\r\n", b'"count":3'),
    "empty lines before a request": (b"\r\n\r\n" + _G + b"\r\n", b'"version"'),
    "an absolute target": (b"GET http://x/version HTTP/1.1\r\nhost: x\r\n\r\n", b'"version"'),
    "an absolute target with a user": (b"GET http://u:p@x:1/version?a HTTP/1.1\r\nhost: x\r\n\r\n", b'"version"'),
    "an upgrade to websocket": (_G + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n", b'"version"'),
    "an upgrade to HTTP/2 beside a body": (
        post("/tokenize", _BODY, "connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABk"),
        b'"count":3',
    ),
    "an expectation": (post("/tokenize", _BODY, "expect: 100-continue"), b'"count":3'),
    "a body for GET": (b"GET /version HTTP/1.1\r\nhost: x\r\ncontent-length: 16\r\n\r\n" + _BODY, b'"version"'),
    "1,000 headers": (_G + b"".join(b"y%d: z\r\n" % i for i in range(1000)) + b"\r\n", b'"version"'),
    "2,000 pipelined requests": (get("/version") * 2000, b'"version"'),
    "2,000 pipelined upgrades": ((_G + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n") * 2000, b'"version"'),
}  # fmt: skip


async def wrong_http(port: int, names: tuple[str, ...] = tuple(WRONG)) -> Outcome:
    """Each gets one answer, 4xx with a sentence, and nothing that came with it is read as another request."""
    outcome = Outcome()

    async def one(name: str) -> None:
        async with Connection(port) as connection:
            sending = asyncio.create_task(connection.send(WRONG[name]))
            first = await connection.answer(seconds=10)
            outcome.add(str(first.status))
            fine = 400 <= first.status < 500 and len(first.sentence.split()) > 2
            outcome.expect(fine, f"{name}: {first.status} {first.body[:200]!r}")
            if first.headers.get("connection") == "close":
                second = await connection.answer(seconds=10)
                outcome.expect(second.status == 0, f"{name}: a second answer came, {second.status}")
            sending.cancel()

    await asyncio.gather(*map(one, names))
    return outcome


async def right_http(port: int, names: tuple[str, ...] = tuple(RIGHT)) -> Outcome:
    """Rare, and right: answered as what it is, and the connection goes on."""
    outcome = Outcome()

    async def one(name: str) -> None:
        request, expected = RIGHT[name]
        number = request.count(b"HTTP/1.1\r\n")
        async with Connection(port) as connection:
            sending = asyncio.create_task(connection.send(request + get("/health")))
            for _ in range(number):
                answer = await connection.answer(seconds=20)
                outcome.add(str(answer.status))
                outcome.expect(answer.status == 200 and expected in answer.body, f"{name}: {answer}")
            last = await connection.answer(seconds=20)
            outcome.expect(last.status == 200 and b"ok" in last.body, f"{name}: the next request got {last}")
            await sending

    await asyncio.gather(*map(one, names))
    return outcome
