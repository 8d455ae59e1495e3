"""Models from the Hugging Face hub, through huggingface_hub: its cache, offline mode, tokens and progress bar.

It does not know what is in the files. huggingface_hub is imported when something is fetched, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import ModelSourceError

Progress = Callable[[str], None]
# Configuration, tokenizer, templates and safetensors; not the same weights once more in another format.
_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_UNWANTED = ("original/*", "onnx/*", "runs/*", "checkpoint-*/*", "consolidated*")


def fetch_repository(repo_id: str, revision: str | None, progress: Progress | None = None) -> Path:
    """The directory with the newest files of ``repo_id`` (or those of ``revision``), from the cache as far as possible.

    Raises ModelSourceError.
    """
    if progress is not None:
        progress(f"Fetching {repo_id} from the hub, unless it is in the cache.")
    with _as_sentences(repo_id, revision):
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED))
        )


def fetch_file(repo_id: str, file_name: str, revision: str | None, progress: Progress | None = None) -> Path:
    """One file of a repository, for example one of its GGUF files. Raises ModelSourceError."""
    if progress is not None:
        progress(f"Fetching {file_name} of {repo_id} from the hub, unless it is in the cache.")
    with _as_sentences(repo_id, revision):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repo_id, file_name, revision=revision))


@contextmanager
def _as_sentences(repo_id: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    # The HTTP library below the hub client differs between its versions; its root error is what the client names.
    transport_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]

    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelSourceError(
            f"{repo_id} asks for its terms to be accepted.\n\nAccept them on the model's page, then set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelSourceError(f"{repo_id} has no revision {revision}. Name a branch, a tag or a commit.") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelSourceError(
            f"The hub has no model {repo_id}, or it is private. Check the name; for a private model set HF_TOKEN."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelSourceError(
            f"{repo_id}{at} is not in the local cache, and the hub could not be asked (no network, or HF_HUB_OFFLINE "
            "is set).\n\nGo online once with `penstock pull`, or give the path of a local model."
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelSourceError(f"{repo_id}{at} does not have that file: {_first_line(error)}") from error
    except errors.HFValidationError as error:
        raise ModelSourceError(f"{repo_id} is no valid hub id: {_first_line(error)}") from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, transport_error, OSError) as error:
        raise ModelSourceError(
            f"{repo_id}{at} could not be fetched: {_first_line(error)}\n\nWhat arrived is kept; try again to go on."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
