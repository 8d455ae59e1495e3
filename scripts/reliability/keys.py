"""Keys: every route of the table with none, a wrong and a right one; what another key has stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from penstock.frontend.routes.table import PUBLIC, ROUTES
from reliability.bodies import GOOD
from reliability.wire import Answer, Outcome, ask, get, post

OPEN = {"/health", "/ready", "/version", "/openapi.json"}
"""Routes without a key by decision, besides the page: balancers and clients need them before they have one."""
WRONG: tuple[tuple[str, ...], ...] = (
    (), ("authorization: Bearer wrong",), ("authorization: Bearer ",), ("authorization: Basic {key}",),
    ("authorization: {key}",), ("authorization: Bearer {key}x",), ("authorization: Bearer {key} {key}",),
    ("x-api-key: wrong",), ("x-api-key:",), ("cookie: x-api-key={key}",), ("proxy-authorization: Bearer {key}",),
    ("authorization: Bearer {key}", "authorization: Bearer wrong"),
)  # fmt: skip


async def keys_on_all_routes(port: int, key: str) -> Outcome:
    """Routes of the table that are not open answer 401 without the key, however it is nearly presented."""
    outcome = Outcome()
    for route in ROUTES:
        is_open = route.path in OPEN or route.path == "/" or route.path.startswith("/page/") or "favicon" in route.path
        outcome.expect((route.access == PUBLIC) == is_open, f"{route.path} is {route.access}, against the decision")
        path = route.path.replace("{id}", "resp_1")
        requests = _requests(route.method, path)
        for headers in WRONG:
            for request in requests(tuple(header.format(key=key) for header in headers)):
                answer = await ask(port, request)
                outcome.add(f"{answer.status} {'open' if is_open else 'without'}")
                fine = (answer.status == 401 and "www-authenticate" in answer.headers) != is_open
                outcome.expect(fine, f"{route.method} {path} with {headers} answered {answer.status}")
        for header in (f"authorization: Bearer {key}", f"authorization: bearer {key}", f"x-api-key: {key}"):
            for request in requests((header,)):
                answer = await ask(port, request)
                outcome.add(f"{answer.status} with")
                fine = answer.status not in (401, 403) and answer.status < 500
                outcome.expect(fine, f"{route.method} {path} with the key answered {answer.status}")
    return outcome


def _requests(method: str, path: str) -> Callable[[Iterable[str]], list[bytes]]:
    def make(headers: Iterable[str]) -> list[bytes]:
        if method == "POST":
            return [post(path, GOOD.get(path, {}), *headers)]
        return [get(path, *headers, method=each) for each in (("GET", "HEAD") if method == "GET" else (method,))]

    return make


async def stored_by_another(port: int, first: str, second: str) -> Outcome:
    """What one key has stored is not there for another: the same answers as for what never was."""
    outcome = Outcome()

    async def call(request: bytes) -> Answer:
        answer = await ask(port, request)
        outcome.add(str(answer.status))
        return answer

    def with_key(key: str) -> str:
        return f"authorization: Bearer {key}"

    made = await call(post("/v1/responses", {"input": "abc", "max_output_tokens": 2}, with_key(first)))
    name = json.loads(made.body)["id"]
    for stored, status in ((name, 404), ("resp_never", 404)):
        path = f"/v1/responses/{stored}"
        for request in (
            get(path, with_key(second)),
            get(path + "/input_items", with_key(second)),
            post(path + "/cancel", {}, with_key(second)),
            get(path, with_key(second), method="DELETE"),
            post("/v1/responses", {"input": "d", "previous_response_id": stored}, with_key(second)),
        ):
            answer = await call(request)
            outcome.expect(answer.status == status, f"another key got {answer.status} for {request[:60]!r}")
    for request in (
        get(f"/v1/responses/{name}", with_key(first)),
        post("/v1/responses", {"input": "d", "previous_response_id": name, "max_output_tokens": 2}, with_key(first)),
        get(f"/v1/responses/{name}", with_key(first), method="DELETE"),
    ):
        answer = await call(request)
        outcome.expect(answer.status == 200, f"the owner got {answer.status} for {request[:60]!r}")
    return outcome
