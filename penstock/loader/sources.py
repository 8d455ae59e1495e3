"""Where models come from: a name becomes a directory or a file on this machine. No torch.

It does not know what is in the files. ``SOURCES`` is tried in order; the first entry that accepts a name resolves it:
named bundles, paths that exist, hub ids. A local directory with a bundle's name is reached as ./NAME.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import ModelSourceError
from penstock.loader.bundles import BUNDLES, fetch_bundle, find_bundle

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Files of a model. ``kind`` is "directory" or "gguf" (``path`` is then the file); ``name`` is what to call it."""

    name: str
    kind: str
    path: Path


@dataclass(frozen=True, slots=True)
class SourceKind:
    """A kind of source: ``resolve`` answers None when the name is none of its own."""

    name: str
    example: str
    resolve: Callable[[str, str | None, Progress | None], ModelSource | None]


def resolve_source(name: str, *, revision: str | None = None, progress: Progress | None = None) -> ModelSource:
    """Find the model called ``name``, fetching it when it is not here yet.

    ``revision`` is the branch, tag or commit of a hub id. ``progress`` gets a sentence before each long fetch; the bar
    of a fetch goes to stderr. Raises ModelSourceError with a sentence that says what to do.
    """
    for kind in SOURCES:
        source = kind.resolve(name, revision, progress)
        if source is not None:
            return source
    raise ModelSourceError(_unknown(name))


def _from_bundle(name: str, revision: str | None, progress: Progress | None) -> ModelSource | None:
    bundle = find_bundle(name)
    if bundle is None:
        return None
    return ModelSource(bundle.name, "gguf", fetch_bundle(bundle, progress))


def _from_path(name: str, revision: str | None, progress: Progress | None) -> ModelSource | None:
    if not name:
        return None
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return _file_source(path)
        if path.is_dir():
            return _directory_source(path, path.resolve().name)
    except (OSError, ValueError) as error:  # too long for a file system, a loop of links, a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelSourceError(f"{name[:200]!r} cannot be opened: {reason.lower()}.") from error
    if name.startswith((".", "/", "~")) or (name.endswith(".gguf") and name.count("/") != 2):
        raise ModelSourceError(f"{name} does not exist. Give the path of a model directory or of a .gguf file.")
    return None


def _file_source(path: Path) -> ModelSource:
    if path.suffix.lower() != ".gguf":
        raise ModelSourceError(
            f"{path} is no .gguf file. Give the directory of a safetensors model instead of one of its files."
        )
    return ModelSource(path.stem, "gguf", path)


def _directory_source(path: Path, name: str) -> ModelSource:
    """A directory with config.json, with tokenizer.json (to take the tokenizer from), or with exactly one GGUF file."""
    if (path / "config.json").is_file() or (path / "tokenizer.json").is_file():
        return ModelSource(name, "directory", path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return ModelSource(files[0].stem, "gguf", files[0])
    if files:
        listed = ", ".join(file.name for file in files[:8])
        raise ModelSourceError(f"{path} holds {len(files)} .gguf files ({listed}). Name one of them.")
    raise ModelSourceError(f"{path} is no model: it has neither a config.json nor a .gguf file.")


# One or two more parts than a file name: owner/model, or owner/model/file.gguf for one file of a repository.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.-]+\.gguf)?")


def _from_hub(name: str, revision: str | None, progress: Progress | None) -> ModelSource | None:
    if not _HUB_ID.fullmatch(name):
        return None
    from penstock.loader.hub import fetch_file, fetch_repository

    owner, model, *file = name.split("/")
    if file:
        return _file_source(fetch_file(f"{owner}/{model}", file[0], revision, progress))
    return _directory_source(fetch_repository(name, revision, progress), model)


SOURCES: tuple[SourceKind, ...] = (
    SourceKind("bundle", "smollm2", _from_bundle),
    SourceKind("path", "./my-model or ./model.gguf", _from_path),
    SourceKind("hub", "HuggingFaceTB/SmolLM2-135M-Instruct", _from_hub),
)


def _unknown(name: str) -> str:
    names = [spelling for bundle in BUNDLES for spelling in (bundle.name, *bundle.aliases)]
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Bundles: {', '.join(names)}."
    kinds = "; ".join(f"{kind.name} ({kind.example})" for kind in SOURCES)
    return f"No model is called {name!r}. {hint}\n\nA model is one of: {kinds}."
