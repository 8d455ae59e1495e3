"""A tokenizer from the metadata of a GGUF file.

Reads the ``tokenizer.ggml.*`` keys; does not open files. Where llama.cpp and the model's own tokenizer disagree about
a detail that the file does not state, the model's own (as transformers builds it) is followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import UnsupportedModelError
from penstock.frontend.text.pretokenizers import pre_tokenizer
from penstock.frontend.text.tokenizer import HubTokenizer, set_sequence_ends
from penstock.frontend.text.vocabularies import TokenType, Vocabulary, build_byte_level, build_sentencepiece

_PREFIX = "tokenizer.ggml."
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_OF_MESSAGE = "<|end|>"
_END_OF_TURN = frozenset({"<|eot_id|>", "<|im_end|>", "<end_of_turn>", _END_OF_MESSAGE})
_HARMONY_ENDS = frozenset({"<|return|>", "<|call|>"})
_GEMMA = frozenset({"gemma", "gemma2", "gemma3"})


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> HubTokenizer:
    """Build it. Raises UnsupportedModelError for a tokenizer model or split that is not known."""
    kind = metadata.get(f"{_PREFIX}model")
    if kind is None or f"{_PREFIX}tokens" not in metadata:
        raise UnsupportedModelError(
            "The GGUF file has no tokenizer.\n\nUse --tokenizer to name a directory with a tokenizer.json."
        )
    vocabulary = Vocabulary(tokens=metadata[f"{_PREFIX}tokens"], types=metadata.get(f"{_PREFIX}token_type", ()))
    if kind == "gpt2":
        pre = pre_tokenizer(metadata.get(f"{_PREFIX}pre", "default"))
        backend = build_byte_level(vocabulary, _merges(metadata), pre)
        add_bos = pre.add_bos
    elif kind == "llama":
        backend = _sentencepiece(metadata, vocabulary)
        add_bos = True
    else:
        raise UnsupportedModelError(
            f"The GGUF file's tokenizer is of type {kind!r} (tokenizer.ggml.model); known are 'gpt2' (byte-level BPE) "
            "and 'llama' (sentencepiece).\n\nUse --tokenizer to name a directory with the model's tokenizer.json."
        )
    bos, eos = _token_id(metadata, "bos_token_id"), _token_id(metadata, "eos_token_id")
    set_sequence_ends(
        backend,
        bos=vocabulary.tokens[bos] if bos is not None and metadata.get(f"{_PREFIX}add_bos_token", add_bos) else None,
        eos=vocabulary.tokens[eos] if eos is not None and metadata.get(f"{_PREFIX}add_eos_token", False) else None,
    )
    return HubTokenizer(backend, bos_token_id=bos, eos_token_id=eos)


def gguf_stop_ids(metadata: Mapping[str, Any]) -> frozenset[int]:
    """Ids of end of sequence, end of turn and end of message, as far as the file names them.

    Older files name no end of turn: there a control token with one of its usual texts is taken. Where a model has the
    ends of harmony, an answer is several messages: it ends with those, whatever the file names, and not with a message.
    """
    types: Sequence[int] = metadata.get(f"{_PREFIX}token_type", ())
    tokens: Sequence[str] = metadata.get(f"{_PREFIX}tokens", ())
    rows = zip(tokens, types, strict=False)
    controls = {text: row for row, (text, kind) in enumerate(rows) if kind == TokenType.CONTROL}
    found = {_token_id(metadata, key) for key in _END_KEYS}
    if _token_id(metadata, "eot_token_id") is None:
        found |= {controls[text] for text in _END_OF_TURN & controls.keys()}
    if controls.keys() >= _HARMONY_ENDS:
        found |= {controls[text] for text in _HARMONY_ENDS}
        found.discard(controls.get(_END_OF_MESSAGE))
    return frozenset(token_id for token_id in found if token_id is not None)


def gguf_special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Template variables: bos_token, eos_token, unk_token, pad_token, as far as the file names them."""
    tokens: Sequence[str] = metadata.get(f"{_PREFIX}tokens", ())
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    found = {variable: _token_id(metadata, f"{name}_token_id") for variable, name in names.items()}
    return {variable: tokens[token_id] for variable, token_id in found.items() if token_id is not None}


def gguf_chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; the plain one is "default"."""
    templates: dict[str, str] = {}
    for name in metadata.get("tokenizer.chat_templates", ()):
        if isinstance(text := metadata.get(f"tokenizer.chat_template.{name}"), str):
            templates[name] = text
    if isinstance(text := metadata.get("tokenizer.chat_template"), str):
        templates["default"] = text
    return templates


def _token_id(metadata: Mapping[str, Any], key: str) -> int | None:
    token_id = metadata.get(f"{_PREFIX}{key}")
    if not isinstance(token_id, int) or not 0 <= token_id < len(metadata[f"{_PREFIX}tokens"]):
        return None
    return token_id


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges are stored as two pieces with a space between; no piece contains one."""
    merges = metadata.get(f"{_PREFIX}merges")
    if merges is None:
        raise UnsupportedModelError("The GGUF file's byte-level tokenizer has no merges (tokenizer.ggml.merges).")
    return [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> Any:
    tokens = list(vocabulary.tokens)
    scores: Sequence[float] = metadata.get(f"{_PREFIX}scores", ())
    prefixed = bool(metadata.get(f"{_PREFIX}add_space_prefix", True))
    if metadata.get("general.architecture") in _GEMMA:
        # Runs of spaces are stored with real spaces, while the text that is looked up has ▁. Scores do not follow
        # the order of Gemma's merges; the position in the vocabulary does.
        tokens = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
        scores = range(0, -len(tokens), -1)
        prefixed = False
    if len(scores) != len(tokens):
        raise UnsupportedModelError("The GGUF file's sentencepiece tokenizer has no score for every token.")
    unknown = _token_id(metadata, "unknown_token_id")
    if unknown is None:
        unknown = next((row for row, kind in enumerate(vocabulary.types) if kind == TokenType.UNKNOWN), None)
    return build_sentencepiece(
        Vocabulary(tokens=tokens, types=_types(vocabulary, tokens)),
        scores,
        add_space_prefix=prefixed,
        unknown_token=None if unknown is None else tokens[unknown],
    )


def _types(vocabulary: Vocabulary, tokens: Sequence[str]) -> list[int]:
    """Types, where a token that was spelled anew is a normal one: merges find it."""
    return [
        kind if token == old else int(TokenType.NORMAL)
        for kind, token, old in zip(vocabulary.types, tokens, vocabulary.tokens, strict=False)
    ]
