"""The forward context: the metadata of each KV group, readable only while a forward runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """``metadata`` maps a group's name to what its backend planned; ``kv`` maps a layer number to its view of the
    pool, [num_blocks, *layout.shape] with the KvLayout of the backend."""

    metadata: Mapping[str, Any]
    kv: Mapping[int, torch.Tensor]


_current: ContextVar[ForwardContext | None] = ContextVar("forward_context", default=None)


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def current_forward() -> ForwardContext:
    """Raises RuntimeError outside a forward: layers never keep step state."""
    context = _current.get()
    if context is None:
        raise RuntimeError("no forward is running: wrap the call in forward_context(...)")
    return context
