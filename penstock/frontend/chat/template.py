"""ChatTemplate: a model's Jinja template, compiled once, rendered in a sandbox.

Knows messages as plain dictionaries (``messages`` checks and normalises them) and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ChatTemplate:
    """Renders conversations. ``special_tokens`` are the variables of the template: bos_token, eos_token, ..."""

    def __init__(self, source: str | Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt text of a conversation. Raises InvalidRequestError when the template refuses the messages."""
        raise NotImplementedError
