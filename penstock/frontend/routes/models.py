"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from penstock.frontend.exchange import Exchange
from penstock.frontend.openai.answers import ModelCard, ModelList
from penstock.frontend.openai.encode import encode_json
from penstock.frontend.service import Service


async def list_models(exchange: Exchange, service: Service) -> None:
    cards = [_card(service, name) for name in service.served_names]
    await exchange.answer(200, encode_json(ModelList(data=cards)))


async def show_model(exchange: Exchange, service: Service) -> None:
    name = service.model_name(exchange.path.removeprefix("/v1/models/"))
    await exchange.answer(200, encode_json(_card(service, name)))


def _card(service: Service, name: str) -> ModelCard:
    info = service.client.info
    return ModelCard(id=name, created=service.created, max_model_len=info.max_model_len, root=info.model.name)
