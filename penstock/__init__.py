"""Penstock: an inference and serving engine for large language models.

``from penstock import LLM, SamplingParams`` is the public surface. Importing it loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.config.version import __version__
from penstock.types.request import SamplingParams
from penstock.types.structured import StructuralTag, StructuredSpec

if TYPE_CHECKING:
    from penstock.engine.llm import LLM as LLM

__all__ = ["LLM", "SamplingParams", "StructuralTag", "StructuredSpec", "__version__"]


def __getattr__(name: str) -> object:
    if name == "LLM":
        from penstock.engine.llm import LLM

        return LLM
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
