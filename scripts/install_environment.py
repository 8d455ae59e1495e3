"""Creates .venv and installs Penstock into it, editable, with the versions pinned in constraints.txt.

A stamp per extra holds a digest of everything the installation depends on: while it matches, nothing is run. A lock
makes concurrent calls wait for each other. Standard library only; runs on the system's Python.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
BUILD_REQUIREMENTS = ("hatchling", "editables")
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/install_environment.py")
EXTRAS = ("runtime", "test", "dev", "reports")


def main(arguments: list[str]) -> int:
    wanted = arguments or ["runtime"]
    unknown = [extra for extra in wanted if extra not in EXTRAS]
    if unknown:
        return _complain(f"There is no set of packages {unknown[0]!r}; known are {', '.join(EXTRAS)}.")
    missing = [extra for extra in wanted if not _is_fresh(extra)]
    if not missing:
        return 0
    with _lock():
        missing = [extra for extra in wanted if not _is_fresh(extra)]
        return _install(missing) if missing else 0


def _install(extras: list[str]) -> int:
    started = time.monotonic()
    if not _has_working_pip():
        status = _create_venv()
        if status:
            return status
    print(f"Installing Penstock ({', '.join(extras)}) into .venv; the first time takes minutes.", file=sys.stderr)
    names = ",".join(extra for extra in extras if extra != "runtime")
    target = f".[{names}]" if names else "."
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    pip += ["--constraint", "constraints.txt"]
    if not sys.stderr.isatty():
        pip.append("--quiet")
    # The build backend comes first, from the same pins: build isolation would fetch an unpinned one each time.
    for step in ([*BUILD_REQUIREMENTS], ["--no-build-isolation", "--editable", target]):
        if subprocess.run([*pip, *step], cwd=ROOT, stdout=sys.stderr, check=False).returncode:
            return _complain(
                "Installing failed; pip's message is above. Without network access, point pip at a local index or "
                "wheel folder in its own configuration, then run the same command again: it goes on where it stopped."
            )
    for extra in {*extras, "runtime"}:
        _stamp(extra).write_text(_digest(), encoding="ascii")
    print(f"Installed in {time.monotonic() - started:.0f} s.", file=sys.stderr)
    return 0


def _create_venv() -> int:
    """A fresh .venv, replacing one whose creation was interrupted or whose interpreter is gone."""
    if VENV.exists():
        print("Replacing .venv: its Python or pip does not run.", file=sys.stderr)
        shutil.rmtree(VENV)
    if subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False).returncode == 0:
        return 0
    shutil.rmtree(VENV, ignore_errors=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return _complain(
        f"{sys.executable} could not create a virtual environment; its venv module is incomplete. Install it "
        f"(on Debian and Ubuntu: apt install python{version}-venv), or choose another with PYTHON=/path/to/python."
    )


def _has_working_pip() -> bool:
    if not PYTHON.exists():
        return False
    command = [str(PYTHON), "-c", "import sys, pip; sys.exit(sys.version_info < (3, 11))"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _stamp(extra: str) -> Path:
    return VENV / f"{extra}.stamp"


def _is_fresh(extra: str) -> bool:
    try:
        return _stamp(extra).read_text(encoding="ascii") == _digest() and PYTHON.exists()
    except OSError:
        return False


def _digest() -> str:
    """Covers what is installed and where: a moved checkout has an editable install that points elsewhere."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: no lock, and no make either
        yield
        return
    with open(ROOT / ".venv.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another installation into .venv to end.", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _complain(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 1


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main(sys.argv[1:]))
