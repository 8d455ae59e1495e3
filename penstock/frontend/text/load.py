"""Reads everything about text that a model's files say: tokenizer, chat template, stop ids, sampling defaults.

Reads files only; finding and fetching them is the loader's job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import ConfigError, ModelSourceError, UserError
from penstock.frontend.chat.template import ChatTemplate
from penstock.frontend.dialects.select import AUTO, SelectedDialect, select_dialect
from penstock.frontend.text.gguf_tokenizer import (
    gguf_chat_templates,
    gguf_special_tokens,
    gguf_stop_ids,
    tokenizer_from_gguf,
)
from penstock.frontend.text.hub_files import (
    TokenizerFiles,
    hub_chat_templates,
    hub_special_tokens,
    read_json,
    tokenizer_from_files,
)
from penstock.frontend.text.tokenizer import Tokenizer
from penstock.loader.gguf_file import GgufFile
from penstock.types.request import SamplingParams

if TYPE_CHECKING:
    from penstock.loader.sources import ModelSource

_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAssets:
    """What a frontend needs to speak a model's language.

    ``stop_token_ids`` is the union of all end-of-sequence ids that the model's files declare. ``sampling_defaults``
    has names of SamplingParams; ``max_new_tokens`` caps an output whose request names no length. ``dialect`` says how
    the model writes tool calls and reasoning; None when nobody has looked.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None = None
    stop_token_ids: frozenset[int] = frozenset()
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    dialect: SelectedDialect | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _TextSide:
    """What one source says about text. The tokenizer is made only when it is wanted: a source may have none."""

    has_tokenizer: bool
    make_tokenizer: Callable[[], Tokenizer]
    templates: Mapping[str, str]
    special_tokens: Mapping[str, str]
    stop_ids: frozenset[int]
    generation: Mapping[str, Any] = field(default_factory=dict)


def load_text_assets(
    source: ModelSource,
    *,
    tokenizer: str | None = None,
    chat_template: str | None = None,
    generation_config: str = "auto",
    stand_in: Tokenizer | None = None,
    tool_dialect: str = AUTO,
) -> TextAssets:
    """Read a model's text side.

    ``tokenizer`` names a directory, GGUF file or hub id whose tokenizer replaces the model's own, and whose chat
    templates do, if it has any.
    ``chat_template`` is a file with a Jinja template. ``generation_config`` "none" ignores sampling defaults (stop ids
    are still read). ``stand_in`` is the tokenizer of a model that comes without one; its ends mean nothing to the
    model, so they are no stop ids. ``tool_dialect`` is "auto", "none" or a dialect's name.
    Raises ModelSourceError for files that are missing or damaged,
    UnsupportedModelError for a tokenizer that cannot be used, ConfigError for a template file that cannot be read.
    """
    own = _read_side(source)
    other = own if tokenizer is None else _read_side(_other_source(tokenizer))
    stop_ids = own.stop_ids
    if stand_in is not None and not other.has_tokenizer:
        loaded = stand_in
    else:
        loaded = other.make_tokenizer()
        stop_ids |= {loaded.eos_token_id} if loaded.eos_token_id is not None else set()
    shown = other if other.templates else own
    templates = shown.templates
    if chat_template is not None:
        templates = {"default": read_template(chat_template)}
    template = ChatTemplate(templates, shown.special_tokens) if templates else None
    wanted = own.generation if generation_config == "auto" else {}
    return TextAssets(
        tokenizer=loaded,
        chat_template=template,
        stop_token_ids=stop_ids,
        sampling_defaults=_sampling_defaults(wanted),
        max_new_tokens=wanted.get("max_new_tokens"),
        dialect=select_dialect(templates, template.render if template else None, loaded, tool_dialect),
    )


def _read_side(source: ModelSource) -> _TextSide:
    if source.kind != "directory":
        file = GgufFile(source.path)
        metadata = file.metadata
        file.close()
        return _TextSide(
            has_tokenizer=True,
            make_tokenizer=partial(tokenizer_from_gguf, metadata),
            templates=gguf_chat_templates(metadata),
            special_tokens=gguf_special_tokens(metadata),
            stop_ids=gguf_stop_ids(metadata),
        )
    files = TokenizerFiles.read(source.path)
    config = read_json(source.path / "config.json")
    generation = read_json(source.path / "generation_config.json")
    return _TextSide(
        has_tokenizer=files.has_tokenizer,
        make_tokenizer=partial(tokenizer_from_files, files),
        templates=hub_chat_templates(files),
        special_tokens=hub_special_tokens(files),
        stop_ids=_eos_ids(config) | _eos_ids(config.get("text_config") or {}) | _eos_ids(generation),
        generation=generation,
    )


def _other_source(name: str) -> ModelSource:
    from penstock.loader.sources import resolve_source

    return resolve_source(name)


def read_template(path: str) -> str:
    """The text of a chat template file. Raises ConfigError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The chat template file {path!r} cannot be read: {error}.") from error


def _eos_ids(section: Mapping[str, Any]) -> frozenset[int]:
    """``eos_token_id`` of a configuration: a number, a list, or nothing."""
    value = section.get("eos_token_id")
    ids: Iterable[Any] = value if isinstance(value, list) else (value,)
    return frozenset(token_id for token_id in ids if isinstance(token_id, int))


def _sampling_defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {name: generation[name] for name in _DEFAULTS if generation.get(name) is not None}
    try:
        SamplingParams(**defaults, max_tokens=generation.get("max_new_tokens"))
    except (UserError, TypeError) as error:
        raise ModelSourceError(
            f"generation_config.json has sampling defaults that cannot be used: {error}\n\n"
            "Use --generation-config none to ignore them."
        ) from error
    return defaults
