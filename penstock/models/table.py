"""Architecture name -> family module, one line each. Importing this loads no family and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from penstock.errors import UnsupportedModelError

# Names as checkpoints spell them: hub class names, then GGUF's general.architecture.
FAMILIES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "llama": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "qwen2": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "qwen3": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "gemma3": "gemma3",
}


def family_name(architecture: str) -> str:
    """The module name of an architecture, without loading it. Raises UnsupportedModelError naming what is supported."""
    name = FAMILIES.get(architecture)
    if name is None:
        raise UnsupportedModelError(
            f"The model's architecture {architecture!r} is not supported. Supported are {', '.join(FAMILIES)}."
        )
    return name


def family_of(architecture: str) -> ModuleType:
    """The family module, which has the names that ``models.family`` lists."""
    return import_module(f"penstock.models.{family_name(architecture)}")
