"""Builds native/ for the Python that runs this, and puts the extension into penstock/, where the source tree finds it.

``pip install`` does not come here: scikit-build-core runs CMake by itself. Incremental; standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "penstock"
BUILD = ROOT / "build" / f"native-{sys.implementation.cache_tag}"  # run_native_tests.py builds its tests there, too
EXTENSION = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
# Programs that pip installed stand beside the interpreter.
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))


def main() -> int:
    """Exit status 0: the extension is there and belongs to the sources. Otherwise there is none."""
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=PATH) else []
    configure = ["cmake", "-S", "native", "-B", str(BUILD), *generator, "--log-level=WARNING"]
    steps = (
        [*configure, "-DPENSTOCK_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", str(BUILD), "--parallel", str(os.cpu_count() or 1), "--target", "_native"],
    )
    for command in steps:
        try:
            status = subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": PATH}, check=False).returncode
        except FileNotFoundError:
            print("There is no cmake: install it, or run make install.", file=sys.stderr)
            status = 1
        if status:
            # One that was built from other sources would be called with other arguments.
            (PACKAGE / EXTENSION).unlink(missing_ok=True)
            return 1
    # Renamed, not written over: a running process keeps the file that it has mapped.
    fresh = PACKAGE / f"{EXTENSION}.{os.getpid()}"
    shutil.copyfile(BUILD / EXTENSION, fresh)
    fresh.replace(PACKAGE / EXTENSION)
    return 0


if __name__ == "__main__":
    sys.exit(main())
