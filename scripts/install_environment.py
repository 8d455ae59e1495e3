"""Creates .venv, installs what Penstock needs with the versions pinned in constraints.txt, and builds native/ in place.

The source tree itself is what .venv imports, through a plain line in a .pth file: the editable installs that the build
backend offers put a finder before all others, so that a second checkout on PYTHONPATH would not be seen.

A stamp per extra, and one for native code, hold a digest of everything they depend on: while it matches, nothing is
run. A lock makes concurrent calls wait for each other. Standard library only; runs on the system's Python.
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
BUILD_REQUIREMENTS = ("scikit-build-core", "nanobind")
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/install_environment.py")
EXTRAS = ("runtime", "test", "dev", "reports")
# CMake and Ninja, where the machine has none that will do; and where modules are installed.
ASK_FOR_TOOLS = "from scikit_build_core.build import get_requires_for_build_wheel as ask; print(*ask(), sep='\\n')"
ASK_FOR_PATH = "import sysconfig; print(sysconfig.get_path('purelib'))"


PIP_FAILED = (
    "Installing failed; pip's message is above. Without network access, point pip at a local index or wheel folder in "
    "its own configuration, then run the same command again: it goes on where it stopped."
)


def main(arguments: list[str]) -> int:
    wanted = arguments or ["runtime"]
    unknown = [extra for extra in wanted if extra not in EXTRAS]
    if unknown:
        return _complain(f"There is no set of packages {unknown[0]!r}; known are {', '.join(EXTRAS)}.")
    if all(_is_fresh(extra) for extra in wanted) and _native_is_fresh():
        return 0
    with _lock():
        missing = [extra for extra in wanted if not _is_fresh(extra)]
        status = _install(missing) if missing else 0
        if status == 0 and not _native_is_fresh():
            _build_native()
        return status


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
    if _run([*pip, *BUILD_REQUIREMENTS]):
        return _complain(PIP_FAILED)
    tools = _ask(ASK_FOR_TOOLS)
    if tools and _run([*pip, *tools]):
        return _complain(PIP_FAILED)
    if _run([*pip, "--no-build-isolation", target], PENSTOCK_BUILD="metadata"):
        return _complain(PIP_FAILED)
    (Path(*_ask(ASK_FOR_PATH)) / "penstock.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    # Half of a start would otherwise be compiling, and always where PYTHONDONTWRITEBYTECODE is set.
    _run([str(PYTHON), "-m", "compileall", "-q", "penstock"])
    for extra in {*extras, "runtime"}:
        _stamp(extra).write_text(_digest(), encoding="ascii")
    print(f"Installed in {time.monotonic() - started:.0f} s.", file=sys.stderr)
    return 0


def _build_native() -> None:
    """Build the extension. Everything runs without it, so that failing is a sentence, not the end."""
    digest = _native_digest()
    if not _compiler():
        for old in (ROOT / "penstock").glob("_native*.so"):
            old.unlink()
        print("No C++ compiler: going on without native CPU kernels; `penstock check` says more.", file=sys.stderr)
    else:
        print("Building native/ for this machine's Python.", file=sys.stderr)
        if _run([str(PYTHON), "scripts/build_native.py"]):
            _complain("The native CPU kernels could not be built; the compiler's message is above. Going on without.")
            return
    _stamp("native").write_text(digest, encoding="ascii")


def _run(command: list[str], **environment: str) -> int:
    return subprocess.run(
        command, cwd=ROOT, stdout=sys.stderr, env={**os.environ, **environment}, check=False
    ).returncode


def _ask(program: str) -> list[str]:
    """Lines that the environment's Python prints."""
    done = subprocess.run([str(PYTHON), "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line]


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


def _native_is_fresh() -> bool:
    try:
        fresh = _stamp("native").read_text(encoding="ascii") == _native_digest()
    except OSError:
        return False
    return fresh and (any((ROOT / "penstock").glob("_native*.so")) or not _compiler())


def _native_digest() -> str:
    """Covers the sources, and the compiler: one that is installed later builds what could not be built before."""
    digest = hashlib.sha256(f"{PYTHON} {_compiler()}".encode())
    for path in sorted((ROOT / "native").rglob("*")):
        if path.is_file() and "tests" not in path.parts:
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _compiler() -> str:
    """The C++ compiler that CMake would find; empty when there is none."""
    found = (shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))
    return next((path for path in found if path), "")


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
