"""Reads everything about text that a model's files say: tokenizer, chat template, stop ids, sampling defaults.

Reads files only; fetching is the loader's job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.frontend.chat.template import ChatTemplate
from penstock.frontend.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAssets:
    """What a frontend needs to speak a model's language.

    ``stop_token_ids`` is the union of all end-of-sequence ids that the model's files declare. ``sampling_defaults``
    has names of SamplingParams.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None = None
    stop_token_ids: frozenset[int] = frozenset()
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
