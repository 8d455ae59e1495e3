"""Bodies that are wrong: random damage to good ones, and values that somebody thought about."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

from reliability.wire import Answer, Connection, Outcome, ask, post

MESSAGES = [{"role": "user", "content": "Hello"}]
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "abc", "max_tokens": 2, "stop": ["x"], "logit_bias": {"65": 1.0}, "n": 1, "seed": 1},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2, "temperature": 0.5, "logprobs": True},
    "/v1/responses": {"input": "abc", "max_output_tokens": 2, "metadata": {"a": "b"}, "instructions": "Be."},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 2, "system": "Be."},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/tokenize": {"prompt": "abc"},
    "/detokenize": {"tokens": [65, 66]},
}
ODD: tuple[bytes, ...] = (
    b"null", b"true", b"-1", b"0", b"1e308", b"1e999", b"-1e999", b"NaN", b"Infinity", b"9" * 400, b"-" + b"9" * 400,
    b"1e-400", b"0.1e1", b'""', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xed\xa0\x80"', b'"\xff"', b'"\\u0000"',
    b"[]", b"{}", b"[[]]", b"[null]", b'{"a":1,"a":2}', b"[" * 5000 + b"]" * 5000, b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"[" * 200 + b"]" * 200, b'{"a":' * 300 + b"1" + b"}" * 300, b"[" + b"0," * 5000 + b"0]",
    b'"' + b"a" * 70_000 + b'"',
    b"2147483648", b"-9223372036854775809", b"1.5", b"'a'", b"undefined", b"[1,]", b"/*", b"\x00",
)  # fmt: skip
"""JSON, and what is none, in place of a value."""


def damaged(random_: random.Random, path: str) -> bytes:
    """A good body of the route after one kind of damage."""
    body = dict(GOOD[path])
    data = json.dumps(body).encode()
    kind = random_.randrange(8)
    if kind == 0:
        return data[: random_.randrange(len(data))]
    if kind == 1:
        at = random_.randrange(len(data))
        return data[:at] + bytes([random_.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        at = random_.randrange(len(data))
        return data[:at] + random_.choice(ODD) + data[at:]
    if kind == 3:
        return random_.choice(ODD)
    if kind == 4:
        return random_.randbytes(random_.randrange(1, 300))
    field = random_.choice(list(body))
    value = random_.choice(ODD)
    if kind == 5:  # a field twice
        return b'{"%b":%b,' % (field.encode(), value) + data[1:]
    if kind == 6:
        del body[field]
        return json.dumps(body).encode()
    fields = [
        b'"%b":%b' % (name.encode(), value if name == field else json.dumps(body[name]).encode()) for name in body
    ]
    return b"{" + b",".join(fields) + b"}"


def is_instruction(answer: Answer) -> bool:
    """An error of the client, with a sentence that says what is wrong."""
    return 400 <= answer.status < 500 and len(answer.sentence.split()) > 2


async def malformed_bodies(port: int, number: int, seed: int = 0, concurrency: int = 8) -> Outcome:
    """``number`` damaged bodies over all routes that take one: 2xx, or 4xx with a sentence, and none is missing."""
    outcome = Outcome()
    random_ = random.Random(seed)
    left = iter(range(number))

    async def client() -> None:
        closed = False
        while not closed:
            closed = True
            async with Connection(port) as connection:
                for _ in left:
                    path = random_.choice(list(GOOD))
                    data = damaged(random_, path)
                    await connection.send(post(path, data))
                    answer = await connection.answer()
                    outcome.add(str(answer.status))
                    fine = 200 <= answer.status < 300 or is_instruction(answer)
                    outcome.expect(fine, f"{path} answered {answer.status} {answer.body[:200]!r} to {data[:200]!r}")
                    closed = answer.complete and answer.headers.get("connection") != "close"
                    if not closed:
                        break

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return outcome


DEEP = b'{"prompt":"a","structured_outputs":{"json":' + b'{"properties":{"a":' * 2000 + b"{}" + b"}}" * 2000 + b"}}"

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
TOOLS = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(100_000)]
PART = {"type": "text", "text": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (8 << 20)}}
GIANT: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "max_tokens of a billion": (TEXT, {"prompt": "a", "max_tokens": 10**9}, (400,)),
    "max_tokens of 2^63": (TEXT, {"prompt": "a", "max_tokens": 2**63}, (400,)),
    "max_tokens below zero": (TEXT, {"prompt": "a", "max_tokens": -1}, (400,)),
    "n below zero": (TEXT, {"prompt": "a", "n": -1}, (400,)),
    "n of zero": (TEXT, {"prompt": "a", "n": 0}, (400,)),
    "n of a billion": (TEXT, {"prompt": "a", "n": 10**9}, (400,)),
    "100,000 stop strings": (TEXT, {"prompt": "a", "stop": [str(i) for i in range(100_000)]}, (400,)),
    "a stop string of 1 MiB": (TEXT, {"prompt": "a", "stop": "a" * (1 << 20)}, (400,)),
    "100,000 stop ids": (TEXT, {"prompt": "a", "stop_token_ids": [65] * 100_000}, (200, 400)),
    "100,000 biases": (TEXT, {"prompt": "a", "logit_bias": {str(i): 1 for i in range(100_000)}}, (400,)),
    "100,000 bad words": (TEXT, {"prompt": "a", "bad_words": [f"w{i}" for i in range(100_000)]}, (200, 400)),
    "allowed ids out of vocabulary": (TEXT, {"prompt": "a", "allowed_token_ids": [10**9]}, (400,)),
    "a prompt of ids out of vocabulary": (TEXT, {"prompt": [10**9]}, (400,)),
    "a prompt of ids below zero": (TEXT, {"prompt": [-1]}, (400,)),
    "100,000 prompts": (TEXT, {"prompt": ["a"] * 100_000}, (400,)),
    "a prompt of 16 MiB": (TEXT, {"prompt": "a b " * (4 << 20)}, (400,)),
    "a prompt of one word of 8 MiB": (TEXT, {"prompt": "a" * (8 << 20)}, (400,)),
    "a million empty lists": (TEXT, {"prompt": "a", "x": [[] for _ in range(1_100_000)]}, (400,)),
    "100,000 unknown fields": (TEXT, {"prompt": "a", "max_tokens": 1, **{f"u{i}": 1 for i in range(100_000)}}, (200,)),
    "logprobs of a million": (TEXT, {"prompt": "a", "logprobs": 10**6}, (400,)),
    "100,000 messages": (CHAT, {"messages": MESSAGES * 100_000}, (400,)),
    "an image of 8 MiB for a text model": (CHAT, {"messages": [{"role": "user", "content": [IMAGE]}]}, (400,)),
    "100,000 tools": (CHAT, {"messages": MESSAGES, "tools": TOOLS}, (400,)),
    "100,000 messages by another protocol": (
        "/v1/messages",
        {"messages": [{"role": r, "content": "a"} for r in ("user", "assistant")] * 50_000, "max_tokens": 1}, (400,)
    ),
    "100,000 turns of the same role": ("/v1/messages", {"messages": MESSAGES * 100_000, "max_tokens": 1}, (400,)),
    "100,000 items": (RESPONSES, {"input": MESSAGES * 100_000}, (400,)),
    "100,000 reasoning items": (RESPONSES, {"input": [{"type": "reasoning", "summary": []}] * 100_000}, (400,)),
    "100,000 parts": (CHAT, {"messages": [{"role": "user", "content": [PART] * 100_000}]}, (400,)),
    "a template in the request": (CHAT, {"messages": MESSAGES, "chat_template": "{% for a in b %}"}, (400,)),
    "template variables that are code": (
        CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"messages": 1}}, (400,)
    ),
    "a role that is code": (CHAT, {"messages": [{"role": "{{ 7*7 }}", "content": "a"}]}, (400,)),
    "content that is code": (
        CHAT, {"messages": [{"role": "user", "content": "{{ ''.__class__ }}"}], "max_tokens": 1}, (200,)
    ),
    "a timeout of 1e-300 s": (TEXT, {"prompt": "a", "request_timeout": 1e-300}, (200, 408)),
    "an unknown earlier response": (RESPONSES, {"input": "a", "previous_response_id": "resp_x" * 1000}, (404,)),
}  # fmt: skip
CONSTRAINTS: dict[str, dict[str, Any] | bytes] = {
    "regex (a+)+$": {"regex": "(a+)+$"},
    "regex (a|a)*b": {"regex": "(a|a)*b"},
    "regex (a?){5000}a{5000}": {"regex": "(a?){5000}a{5000}"},
    "regex with a billion repetitions": {"regex": "((((a{1000}){1000}){1000}){1000})"},
    "regex of unicode classes": {"regex": r"(\p{L}{1,1000}\w{1,1000}){1,1000}"},
    "regex nested 5,000 deep": {"regex": "(" * 5000 + "a" + ")" * 5000},
    "regex that ends early": {"regex": "(a"},
    "regex with a lookbehind": {"regex": "(?<=a)b"},
    "regex with a back reference": {"regex": r"(a)\1"},
    "schema nested 2,000 deep": DEEP,
    "schema that refers to itself": {"json": {"$ref": "#"}},
    "schema of two that refer to each other": {
        "json": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    },
    "schema that refers to the network": {"json": {"$ref": "http://127.0.0.1:1/schema.json"}},
    "schema that refers to a file": {"json": {"$ref": "file:///etc/passwd"}},
    "schema with a catastrophic pattern": {"json": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}},
    "schema with a huge minItems": {"json": {"type": "array", "minItems": 10**9}},
    "schema with a huge maxLength": {"json": {"type": "string", "maxLength": 10**9}},
    "schema of 20,000 properties": {
        "json": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(20_000)}}
    },
    "schema of 20,000 alternatives": {"json": {"anyOf": [{"const": f"c{i}"} for i in range(20_000)]}},
    "schema of all permutations": {
        "json": {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(40)]}
    },
    "grammar with left recursion": {"grammar": 'start: start "a" | "b"'},
    "grammar that is ambiguous": {"grammar": 'start: start start | "a" |'},
    "grammar of 50,000 rules": {"grammar": "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(50_000))},
    "grammar that imports": {"grammar": "%import /etc/passwd\nstart: a"},
    "200,000 choices": {"choice": [f"choice {i}" for i in range(200_000)]},
    "choices of 4 MiB": {"choice": ["a" * (4 << 20)]},
}


async def giant_requests(port: int, names: tuple[str, ...] = tuple(GIANT)) -> Outcome:
    """Requests that ask for too much: each gets one of the statuses that it should, errors with a sentence."""
    outcome = Outcome()
    for name in names:
        path, body, statuses = GIANT[name]
        answer = await ask(port, post(path, body))
        outcome.add(str(answer.status))
        fine = answer.status in statuses and (answer.status == 200 or is_instruction(answer))
        outcome.expect(fine, f"{name}: {answer.status} {answer.body[:200]!r}, expected {statuses}")
    return outcome


async def hostile_constraints(port: int, names: tuple[str, ...] = tuple(CONSTRAINTS)) -> Outcome:
    """Constraints that take for ever or for all memory: tokens, or 400 with a sentence."""
    outcome = Outcome()

    async def one(name: str) -> None:
        asked = CONSTRAINTS[name]
        body = asked if isinstance(asked, bytes) else {"prompt": "a", "max_tokens": 8, "structured_outputs": asked}
        answer = await ask(port, post(TEXT, body), seconds=120)
        outcome.add(str(answer.status))
        fine = answer.status == 200 or is_instruction(answer)
        outcome.expect(fine, f"{name}: {answer.status} {answer.body[:200]!r}")

    await asyncio.gather(*map(one, names))
    return outcome
