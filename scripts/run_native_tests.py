"""Builds the C++ unit tests of native/ for this machine and for arm64, and runs them, arm64 under qemu's emulation.

A tool that is missing is an error that names the packages to install. ``--install-tools`` installs them where it can
(on Debian and Ubuntu, as root) and does nothing else. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Programs that pip installed stand beside the interpreter.
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
INSTALL = "--install-tools"

# What a target is built with: Debian's package, and the programs of which any one will do.
_CMAKE = {"cmake": ("cmake",), "ninja-build": ("ninja", "make")}
_COMPILER = {"g++": (os.environ.get("CXX", "c++"), "g++", "clang++")}
TOOLS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "host": {**_CMAKE, **_COMPILER},
    "address": {**_CMAKE, **_COMPILER},
    "thread": {**_CMAKE, **_COMPILER},
    "aarch64": {
        **_CMAKE,
        "g++-aarch64-linux-gnu": ("aarch64-linux-gnu-g++",),
        "qemu-user-static": ("qemu-aarch64-static", "qemu-aarch64"),
    },
}
# Of the thread sanitizer: one test forks and starts threads in the child.
ENVIRONMENT = {"TSAN_OPTIONS": "die_after_fork=0"}
DEFAULT = ("host", "aarch64")  # the others, with the compiler's sanitizers, when they are named
_SANITIZED = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g")
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "address": (*_SANITIZED, "-DCMAKE_CXX_FLAGS=-fsanitize=address"),
    "thread": (*_SANITIZED, "-DCMAKE_CXX_FLAGS=-fsanitize=thread"),
    "aarch64": (f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'native/cmake/aarch64-linux-gnu.cmake'}",),
}


def main(arguments: list[str]) -> int:
    """``arguments`` are targets and names of files of tests (``norm`` for test_norm.cpp); none of a kind means all."""
    targets = [name for name in arguments if name in TOOLS] or DEFAULT
    files = [name for name in arguments if name not in TOOLS and name != INSTALL]
    if INSTALL in arguments:
        _install(sorted({package for name in targets for package in missing_packages(name)}))
        return 0
    problems = {}
    for name in targets:
        print(f"--- native tests, {name}", flush=True)
        started = time.monotonic()
        problems[name] = _run_target(name, files)
        print(f"{name}: {problems[name] or 'passed'} ({time.monotonic() - started:.0f} s)", flush=True)
    return 1 if any(problems.values()) else 0


def missing_packages(target: str, path: str = PATH) -> list[str]:
    """Debian's packages of the tools that ``target`` needs and that are not there."""
    return [
        package
        for package, programs in TOOLS[target].items()
        if not any(shutil.which(program, path=path) for program in programs)
    ]


def _run_target(name: str, files: list[str]) -> str:
    """What went wrong; empty when all tests passed."""
    missing = " ".join(missing_packages(name))
    if missing:
        return f"FAILED, it needs {missing} (on Debian and Ubuntu: apt-get install {missing})"
    # The tests of this machine share the compiled kernels with the extension.
    folder = str(ROOT / "build" / f"native-{sys.implementation.cache_tag if name == 'host' else name}")
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=PATH) else []
    configure = ["cmake", "-S", "native", "-B", folder, *generator, "--log-level=WARNING"]
    together = ["--parallel", str(os.cpu_count() or 1)]
    selected = ["--tests-regex", f"^({'|'.join(files)})$"] if files else []
    steps = {
        "configuring": [*configure, "-DPENSTOCK_PYTHON=OFF", "-DPENSTOCK_TESTS=ON", *SETTINGS.get(name, ())],
        "building": ["cmake", "--build", folder, *together, "--target", "native_tests"],
        "tests": ["ctest", "--test-dir", folder, *together, "--output-on-failure", "--no-tests=error", *selected],
    }
    for what, command in steps.items():
        if subprocess.run(command, cwd=ROOT, env={**ENVIRONMENT, **os.environ, "PATH": PATH}, check=False).returncode:
            return f"FAILED, {what}"
    return ""


def _install(packages: list[str]) -> None:
    """Install what is missing where this user may; where not, the targets say what they need."""
    if not packages:
        return
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        print(f"Cannot install {' '.join(packages)}: that takes apt-get and root.", file=sys.stderr)
        return
    print(f"Installing {' '.join(packages)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-qq", "-y", "--no-install-recommends", *packages]):
        subprocess.run([apt, *command], stdout=subprocess.DEVNULL, env=environment, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
