"""Routes about the server itself: health, readiness, version, metrics, facts and decisions, live load."""

from __future__ import annotations

import dataclasses
import time

from penstock.config.version import __version__
from penstock.errors import OverloadedError
from penstock.frontend.admission import Admission
from penstock.frontend.exchange import Exchange
from penstock.frontend.openai.encode import encode_json
from penstock.frontend.openai.errors import HttpError
from penstock.frontend.service import Service

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def show_health(exchange: Exchange, service: Service | None, _: Admission) -> None:
    """200 while this process works and its engine, once started, is alive."""
    trouble = service.client.health() if service is not None else ""
    if trouble:
        raise HttpError(503, f"The engine is not healthy: {trouble}", code="engine_dead")
    await exchange.answer(200, encode_json({"status": "ok"}))


async def show_ready(exchange: Exchange, service: Service | None, admission: Admission) -> None:
    """200 exactly when a request would be taken now."""
    trouble = service.client.health() if service is not None else ""
    if trouble:
        raise HttpError(503, f"The engine is not healthy: {trouble}", code="engine_dead")
    if admission.refusal:
        raise OverloadedError(admission.refusal, status=503, retry_after_s=5)
    await exchange.answer(200, encode_json({"status": "ready"}))


async def show_version(exchange: Exchange, _: Service | None, __: Admission) -> None:
    await exchange.answer(200, encode_json({"version": __version__}))


async def show_metrics(exchange: Exchange, service: Service) -> None:
    others = [snapshot.counts for snapshot in await service.peer_snapshots()]
    await exchange.answer(200, service.metrics.expose(service.client.stats(), others), METRICS_TYPE)


async def show_decisions(exchange: Exchange, service: Service) -> None:
    """Facts, settings and every decision with the reasons of the refused candidates."""
    info = dataclasses.asdict(service.client.info)
    if service.assets.dialect is not None:
        info["decisions"] = [*info["decisions"], dataclasses.asdict(service.assets.dialect.decision)]
    body = {**info, "served_names": service.served_names, "server": _server_settings(service)}
    await exchange.answer(200, encode_json(body))


def _server_settings(service: Service) -> dict[str, object]:
    settings = dataclasses.asdict(service.server)
    settings["api_key"] = f"{len(service.server.api_key)} configured"
    return settings


async def show_load(exchange: Exchange, service: Service) -> None:
    """Gauges and counters of this moment, for the page; rates are differences of two answers."""
    stats = dataclasses.asdict(service.client.stats())
    others = await service.peer_snapshots()

    def counted(name: str, own: float) -> float:
        return own + sum(sum(other.counts[name][()]) for other in others)

    body = {
        **stats,
        "time": time.monotonic(),
        "num_open": service.admission.num_open + sum(other.num_open for other in others),
        "max_queue": service.admission.max_queue,
        "num_refused": service.admission.num_refused + sum(other.num_refused for other in others),
        "sent_tokens": counted("generation_tokens", service.metrics.generation_tokens.value),
        "received_tokens": counted("prompt_tokens", service.metrics.prompt_tokens.value),
        "health": service.client.health(),
    }
    await exchange.answer(200, encode_json(body), headers=(("cache-control", "no-store"),))
