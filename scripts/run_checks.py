"""Runs every static check, two at a time, and prints what each found in a fixed order."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CHECKS: dict[str, list[str]] = {
    "format": [str(BIN / "ruff"), "format", "--check", "--quiet", "."],
    "types": [str(BIN / "mypy")],
    "lint": [str(BIN / "ruff"), "check", "--quiet", "."],
    "imports": [str(BIN / "lint-imports")],
    "sizes": [sys.executable, "scripts/sizes.py"],
    "names": [sys.executable, "scripts/names.py"],
    "docs": [sys.executable, "scripts/generate_docs.py", "--check"],
}
HINTS = {"format": "run: .venv/bin/ruff format .", "docs": "run: scripts/docs"}
ALWAYS_SHOWN = ("sizes",)


def main(names: list[str]) -> int:
    wanted = {name: CHECKS[name] for name in names or CHECKS if name in CHECKS}
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        results = dict(zip(wanted, pool.map(_run, wanted.values()), strict=True))
    for name, (status, output, seconds) in results.items():
        print(f"{'ok    ' if status == 0 else 'FAILED'} {name:8} {seconds:5.1f} s")
        if status or name in ALWAYS_SHOWN:
            print(output.rstrip())
        if status and name in HINTS:
            print(HINTS[name])
    failed = [name for name, (status, _, _) in results.items() if status]
    verdict = f"{len(failed)} of {len(results)} checks failed" if failed else f"{len(results)} checks passed"
    print(f"{verdict} in {time.monotonic() - started:.1f} s", flush=True)
    return 1 if failed else 0


def _run(command: list[str]) -> tuple[int, str, float]:
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout, time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
