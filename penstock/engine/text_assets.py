"""Text and names of what is served, from what was asked: the same in every frontend process of a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from penstock.config.sections import EngineConfig
from penstock.mock.specs import MOCK_NAME

if TYPE_CHECKING:
    from penstock.frontend.text.load import TextAssets

Place = tuple[str, str, str] | None
"""Name, kind and path of a ``loader.sources.ModelSource``; None is the mock engine."""


def make_assets(config: EngineConfig, place: Place) -> TextAssets:
    """Raises what ``build.load_assets`` raises."""
    if place is None:
        from penstock.engine.mock_text import mock_assets

        return mock_assets(config)
    from penstock.engine.build import load_assets
    from penstock.loader.sources import ModelSource

    name, kind, path = place
    return load_assets(config, ModelSource(name, kind, Path(path)))


def served_names(config: EngineConfig, place: Place) -> tuple[str, ...]:
    """Names that requests may use: those the user gave, or the source's own and what the user called it."""
    if config.model.served_model_name:
        return config.model.served_model_name
    if place is None:
        return (MOCK_NAME,)
    asked = config.model.model
    is_path = Path(asked).expanduser().exists()
    return tuple(dict.fromkeys((place[0],) if is_path else (place[0], asked)))
