"""The OpenAPI document, generated from the route table and the records; nothing in it is written by hand."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from penstock.config.version import __version__
from penstock.frontend.openai.encode import encode_json

_REFS = "#/components/schemas/{name}"
_ERRORS = {
    400: "A field is wrong; `param` names it.",
    404: "No such route, or the model is not served.",
    408: "The request's deadline passed.",
    413: "The body is too large.",
    429: "The queue is full; see Retry-After.",
    500: "The server failed.",
    503: "The engine is not there: starting, draining or dead.",
}


class DocumentedRoute(Protocol):
    """What the document needs to know of a route."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def access(self) -> str: ...
    @property
    def generates(self) -> bool: ...
    @property
    def body(self) -> type[Struct] | None: ...
    @property
    def answer(self) -> Any: ...
    @property
    def event(self) -> type[Struct] | None: ...
    @property
    def problem(self) -> type[Struct]: ...
    @property
    def media(self) -> str: ...
    @property
    def documented(self) -> bool: ...


@cache
def _cached(routes: tuple[DocumentedRoute, ...], keyed: bool) -> bytes:
    return encode_json(make_document(routes, keyed=keyed))


def openapi_document(routes: tuple[DocumentedRoute, ...], *, keyed: bool) -> bytes:
    """The document as JSON. ``keyed`` says that the server has API keys."""
    return _cached(routes, keyed)


def make_document(routes: Iterable[DocumentedRoute], *, keyed: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of the documented routes."""
    shown = [route for route in routes if route.documented]
    records = [(route.body, route.answer, route.event, route.problem) for route in shown]
    kinds: list[Any] = [kind for kinds in records for kind in kinds if kind is not None]
    _, components = msgspec.json.schema_components(dict.fromkeys(kinds), ref_template=_REFS)
    paths: dict[str, dict[str, Any]] = {}
    for route in shown:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, keyed)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if keyed:
        document["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
    return document


def _operation(route: DocumentedRoute, keyed: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{route.path.replace('/', '_').replace('{id}', 'id')}",
        "responses": _responses(route, keyed),
    }
    if keyed and route.access == "keyed":
        operation["security"] = [{"key": []}, {"header": []}]
    if "{id}" in route.path:
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(route.body)}}}
    return operation


def _responses(route: DocumentedRoute, keyed: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    if route.answer is not None:
        schema = _ref(route.answer)
    elif route.media != "application/json":
        schema = {"type": "string"}
    content: dict[str, Any] = {route.media: {"schema": schema}}
    if route.event is not None:
        content["text/event-stream"] = {"schema": _ref(route.event)}
    responses: dict[str, Any] = {"200": {"description": "Success.", "content": content}}
    error = {"application/json": {"schema": _ref(route.problem)}}
    for status in _statuses(route, keyed):
        responses[str(status)] = {"description": _ERRORS.get(status, "A key is needed."), "content": error}
    return responses


def _statuses(route: DocumentedRoute, keyed: bool) -> list[int]:
    statuses = {503}
    if route.body is not None:
        statuses |= {400, 404, 413}
    if route.generates:
        statuses |= {408, 429, 500}
    if "{id}" in route.path:
        statuses.add(404)
    if keyed and route.access == "keyed":
        statuses.add(401)
    return sorted(statuses)


def _ref(kind: type[Struct]) -> dict[str, str]:
    return {"$ref": _REFS.format(name=kind.__name__)}
