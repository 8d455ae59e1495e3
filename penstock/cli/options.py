"""Configurations from a verb's options, and the model that it names. Knows no verb, and not how options are read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from penstock.config import flags

if TYPE_CHECKING:
    from penstock.config.sections import EngineConfig, MockConfig, ServerConfig
    from penstock.loader.sources import ModelSource


def engine_config(model: str, options: dict[str, Any]) -> EngineConfig:
    """The engine's sections from a verb's options; those of the server are left aside."""
    names = {flag.name for flag in flags.engine_flags()}
    return flags.engine_config_from("option", model=model, **{k: v for k, v in options.items() if k in names})


def server_config(options: dict[str, Any]) -> ServerConfig:
    names = {flag.name for flag in flags.server_flags()}
    return flags.server_config_from("option", **{k: v for k, v in options.items() if k in names})


def mock_config(options: dict[str, Any]) -> MockConfig:
    names = {flag.name for flag in flags.mock_flags()}
    return flags.mock_config_from("option", **{k: v for k, v in options.items() if k in names})


def fetch_model(model: str, revision: str | None) -> ModelSource:
    """Find or fetch a model, saying on stderr what is fetched; engines then find it in its cache, and say nothing."""
    from penstock.loader.sources import resolve_source

    return resolve_source(model, revision=revision, progress=lambda text: print(text, file=sys.stderr, flush=True))
