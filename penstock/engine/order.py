"""What an engine process is told to build: a record that travels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from penstock.config.sections import EngineConfig
from penstock.mock.specs import MockOrder

if TYPE_CHECKING:
    from penstock.loader.sources import ModelSource


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOrder:
    """What the parent wants built. ``source`` is what the parent found for ``config.model.model``: (name, kind, path)
    of a ``loader.sources.ModelSource``; None lets the engine process look for itself."""

    config: EngineConfig = field(default_factory=EngineConfig)
    source: tuple[str, str, str] | None = None
    mock: bool = False
    mock_order: MockOrder = field(default_factory=MockOrder)
    more_clients: tuple[str, ...] = ()  # addresses of other frontends than the one that orders
    max_open: int = 0  # requests of all frontends together; 0: each counts its own

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def model_source(self) -> ModelSource | None:
        from penstock.loader.sources import ModelSource

        if self.source is None:
            return None
        name, kind, path = self.source
        return ModelSource(name, kind, Path(path))

    @classmethod
    def decode(cls, data: bytes) -> EngineOrder:
        return msgspec.msgpack.decode(data, type=cls)
