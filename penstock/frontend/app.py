"""The application: dispatch, keys, limits and the one place where exceptions become answers.

Everything is injected. Knows no engine besides EngineClient, and no model.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.config.sections import ServerConfig
from penstock.errors import PenstockError
from penstock.frontend.admission import Admission
from penstock.frontend.client import EngineClient
from penstock.frontend.cors import Cors
from penstock.frontend.exchange import Exchange
from penstock.frontend.openai.decode import VALUE_BYTES, count_values, decode_body, warning_header
from penstock.frontend.openai.errors import HttpError, problem_of
from penstock.frontend.openai.openapi import openapi_document
from penstock.frontend.openai.removed import refuse_removed
from penstock.frontend.peers import Peers
from penstock.frontend.routes.table import KEYED, PUBLIC, ROUTES, Route
from penstock.frontend.service import Service
from penstock.observability.log import warn_once

if TYPE_CHECKING:
    from penstock.frontend.text.load import TextAssets

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.01  # between two looks whether all answers have been read


class App:
    """Answers exchanges: a ``protocol.Handler``. Before ``attach`` it answers health routes and the page, and 503 to
    everything else."""

    def __init__(self, server: ServerConfig) -> None:
        self.server = server
        self.admission = Admission(server.max_queue)
        self.service: Service | None = None
        self._key_digests = tuple(_digest(key.encode()) for key in server.api_key)
        document = Route(
            method="GET", path="/openapi.json", handler=self._show_openapi, access=PUBLIC, early=True,
            summary="This document.", documented=False,
        )  # fmt: skip
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: dict[tuple[str, str], dict[str, Route]] = {}  # by what is before and after {id}
        for route in (*ROUTES, document):
            before, hole, after = route.path.partition("{id}")
            methods = self._patterns.setdefault((before, after), {}) if hole else self._exact.setdefault(before, {})
            methods[route.method] = route
        self._cors = Cors(server.cors_origins) if server.cors_origins else None

    def attach(
        self, client: EngineClient, assets: TextAssets, served_names: tuple[str, ...], peers: Peers | None = None
    ) -> None:
        """Give the application its engine; from now on it is ready. Called once. ``peers``: the other processes that
        answer on the same port."""
        if not served_names:
            raise ValueError("served_names must name the model")
        self.service = Service(client, assets, self.server, served_names, self.admission, peers)
        self.admission.set_ready()

    def on_turn(self, num_together: int) -> None:
        """So many requests are begun in this turn of the event loop."""
        if self.service is not None:
            self.service.num_together = num_together

    async def drain(self, is_answering: Callable[[], bool]) -> None:
        """Take nothing new, give open requests ``drain_timeout`` seconds to be answered and their clients to read the
        answers (``is_answering``), then end them with an error."""
        self.admission.drain()
        try:
            async with asyncio.timeout(self.server.drain_timeout):
                await self.admission.idle()
                while is_answering():
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            left = list(self.service.generations) if self.service else []
            _LOG.warning("%d requests were still open after %g s; ending them", len(left), self.server.drain_timeout)
            for generation in left:
                generation.shut_down(
                    HttpError(503, "The server shut down before the answer was complete.", code="shutting_down")
                )

    def close(self) -> None:
        if self.service is not None:
            self.service.close()

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request. Never raises; a stream that fails after its beginning is left incomplete."""
        try:
            if self._cors is not None:
                allowed = self._cors.mark(exchange)
                if await self._cors.answer_preflight(exchange, allowed):
                    return
            await self._serve(exchange)
        except PenstockError as error:
            await self._answer_problem(exchange, problem_of(error))
        except HttpError as problem:
            await self._answer_problem(exchange, problem)
        except ConnectionError:
            return
        except Exception:  # noqa: BLE001 - the boundary of one request
            _LOG.exception("%s %s failed", exchange.method, exchange.path)
            failure = HttpError(500, "The server failed to answer; see its log.", code="internal")
            await self._answer_problem(exchange, failure)

    async def _answer_problem(self, exchange: Exchange, problem: HttpError) -> None:
        if exchange.started:
            _LOG.error("%s %s failed after its answer had begun: %s", exchange.method, exchange.path, problem)
        else:
            await exchange.answer_problem(problem)

    async def _serve(self, exchange: Exchange) -> None:
        route = self._route(exchange)
        exchange.encode_problem = route.encode_problem
        if route.access == KEYED:
            self._check_key(exchange)
        if route.early:
            await route.handler(exchange, self.service, self.admission)
            return
        service = self.service
        if service is None or route.generates:
            self.admission.check()
        assert service is not None
        if route.body is None:
            await route.handler(exchange, service)
            return
        coding = exchange.headers.get("content-encoding", "identity").lower()
        if coding != "identity":
            exchange.keep_alive = False
            raise HttpError(
                415,
                f"Send the body without Content-Encoding: {coding[:64]!r} is not decoded here.",
                code="encoded_body",
            )
        body = await exchange.read_body(self.server.max_request_bytes)
        exchange.require(VALUE_BYTES * count_values(body))
        record, unknown = decode_body(body, route.body)
        if unknown:
            refuse_removed(unknown, route.removed)
            warning = warning_header(unknown)
            warn_once(_LOG, f"{route.path}: {warning}")
            exchange.extra_headers.append(("penstock-warning", warning))
        await route.handler(exchange, service, record)

    def _route(self, exchange: Exchange) -> Route:
        path = exchange.path
        methods = self._exact.get(path)
        if methods is None:
            methods = self._match(path)
        if methods is None:
            raise HttpError(404, f"There is no route {path[:200]!r}; /openapi.json lists them.", code="unknown_route")
        method = "GET" if exchange.method == "HEAD" else exchange.method
        if method not in methods:
            exchange.encode_problem = next(iter(methods.values())).encode_problem
            allowed = ", ".join(sorted({*methods, *({"HEAD"} if "GET" in methods else ())}))
            raise HttpError(
                405,
                f"{path[:200]} takes {allowed}, not {exchange.method[:32]}.",
                code="method_not_allowed",
                headers=(("allow", allowed),),
            )
        return methods[method]

    def _match(self, path: str) -> dict[str, Route] | None:
        """Routes whose path has a hole; those with more after it first."""
        for before, after in sorted(self._patterns, key=lambda pattern: -len(pattern[1])):
            if path.startswith(before) and path.endswith(after) and len(path) > len(before) + len(after):
                return self._patterns[before, after]
        return None

    def _check_key(self, exchange: Exchange) -> None:
        if not self._key_digests:
            return
        scheme, _, bearer = exchange.headers.get("authorization", "").partition(" ")
        presented = [exchange.headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            presented.append(bearer.strip())
        digests = [_digest(key.encode("latin-1", "replace")) for key in presented if key]
        # All keys are compared, in constant time each, so that timing tells nothing.
        matches = [key for digest in digests for key in self._key_digests if hmac.compare_digest(digest, key)]
        if matches:
            exchange.owner = matches[0]
        else:
            raise HttpError(
                401,
                "This server needs an API key: send it as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'.",
                code="invalid_api_key",
                headers=(("www-authenticate", "Bearer"),),
            )

    async def _show_openapi(self, exchange: Exchange, *_: object) -> None:
        await exchange.answer(200, openapi_document(ROUTES, keyed=bool(self._key_digests)))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
