"""The text files of a hub-style model directory: tokenizer.json and its companions, tokenizer.model, chat templates.

Knows file names and their JSON; does not know GGUF.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.errors import ModelSourceError, UnsupportedModelError
from penstock.frontend.text.sentencepiece_model import build_from_model_file
from penstock.frontend.text.tokenizer import HubTokenizer, set_sequence_ends

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HubBackend

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What tokenizer_config.json and special_tokens_map.json say; ``named`` is token text by role (bos_token, ...)."""

    path: Path
    config: Mapping[str, Any]
    named: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> TokenizerFiles:
        config = read_json(path / "tokenizer_config.json")
        merged = {**read_json(path / "special_tokens_map.json"), **{k: v for k, v in config.items() if v is not None}}
        named = {role: text for role in _NAMED if (text := _token_text(merged.get(role))) is not None}
        return cls(path, config, named)

    @property
    def has_tokenizer(self) -> bool:
        return any((self.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is no such file. Raises ModelSourceError when it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{path} cannot be read: {error}.") from error
    if not isinstance(data, dict):
        raise ModelSourceError(f"{path} must contain a JSON object.")
    return data


def tokenizer_from_files(files: TokenizerFiles) -> HubTokenizer:
    """From tokenizer.json, else from tokenizer.model. Raises ModelSourceError when there is neither.

    Which special tokens surround a text is written in tokenizer.json itself; add_bos_token and add_eos_token of the
    configuration count for tokenizer.model only, as in transformers.
    """
    bos, eos = files.named.get("bos_token"), files.named.get("eos_token")
    if (files.path / "tokenizer.json").is_file():
        backend = _read_backend(files.path / "tokenizer.json")
        _add_declared_tokens(backend, files)
    elif (files.path / "tokenizer.model").is_file():
        backend = build_from_model_file(files.path / "tokenizer.model")
        _add_declared_tokens(backend, files)
        begins = bos is not None and backend.token_to_id(bos) is not None and files.config.get("add_bos_token", True)
        ends = eos is not None and backend.token_to_id(eos) is not None and files.config.get("add_eos_token", False)
        set_sequence_ends(backend, bos=bos if begins else None, eos=eos if ends else None)
    else:
        raise ModelSourceError(
            f"{files.path} has no tokenizer.json and no tokenizer.model.\n\n"
            "Use --tokenizer to name a directory or hub id that has one."
        )
    return HubTokenizer(
        backend,
        bos_token_id=None if bos is None else backend.token_to_id(bos),
        eos_token_id=None if eos is None else backend.token_to_id(eos),
    )


def hub_special_tokens(files: TokenizerFiles) -> dict[str, str]:
    """Variables of chat templates: every named special token, and the model's own extra ones."""
    extra = files.config.get("extra_special_tokens")
    named_extra = {name: _token_text(token) for name, token in extra.items()} if isinstance(extra, dict) else {}
    return {**{name: text for name, text in named_extra.items() if text is not None}, **files.named}


def hub_chat_templates(files: TokenizerFiles) -> dict[str, str]:
    """Templates by name: chat_template.jinja and additional_chat_templates/ first, else tokenizer_config.json's."""
    templates: dict[str, str] = {}
    inline = files.config.get("chat_template")
    if isinstance(inline, str):
        templates["default"] = inline
    elif isinstance(inline, list):
        named = (entry for entry in inline if isinstance(entry, dict) and isinstance(entry.get("template"), str))
        templates.update({str(entry.get("name", "default")): entry["template"] for entry in named})
    legacy = read_json(files.path / "chat_template.json").get("chat_template")
    if isinstance(legacy, str):
        templates["default"] = legacy
    for path in sorted((files.path / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _read_text(path)
    if (files.path / "chat_template.jinja").is_file():
        templates["default"] = _read_text(files.path / "chat_template.jinja")
    return templates


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelSourceError(f"{path} cannot be read: {error}.") from error


def _token_text(token: Any) -> str | None:
    """Special tokens are stored as text or as a description with ``content``."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read_backend(path: Path) -> HubBackend:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise UnsupportedModelError(f"{path} cannot be used as a tokenizer: {error}.") from error


def _add_declared_tokens(backend: HubBackend, files: TokenizerFiles) -> None:
    """Added tokens that only tokenizer_config.json declares, and the special flag of named ones.

    A token is added only where that gives it the declared id: an id beyond the model's embedding would be useless.
    """
    from tokenizers import AddedToken

    known = backend.get_added_tokens_decoder()
    declared = files.config.get("added_tokens_decoder") or {}
    for key, token in sorted(declared.items(), key=lambda item: int(item[0])):
        token_id = backend.token_to_id(token["content"])
        if int(key) in known or (token_id if token_id is not None else backend.get_vocab_size()) != int(key):
            continue
        flags = {name: bool(token.get(name, False)) for name in ("lstrip", "rstrip", "single_word", "special")}
        added = AddedToken(token["content"], normalized=bool(token.get("normalized", not flags["special"])), **flags)
        (backend.add_special_tokens if flags["special"] else backend.add_tokens)([added])
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for text in files.named.values():
        if text not in special and backend.token_to_id(text) is not None:
            backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
