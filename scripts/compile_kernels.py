"""Compiles every Triton kernel for every target, without their hardware, and prints what came out.

scripts/compile_kernels.py [--module NAME]... [--target sm_90]... [--workers N] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path

from penstock.kernels.triton.aot import TARGETS
from penstock.kernels.triton.compiler import NAMES, compile_all, text_line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", help="A file of penstock/kernels/triton. Default: all.")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="Default: all.")
    parser.add_argument("--workers", type=int, help="Processes. Default: one per core.")
    parser.add_argument("--json", type=Path, help="Write everything to this file too.")
    given = parser.parse_args()
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: pip install triton", file=sys.stderr)
        return 1
    modules = tuple(name if "." in name else f"penstock.kernels.triton.{name}" for name in given.module or NAMES)
    targets = tuple(given.target or TARGETS)
    started = time.monotonic()
    outcomes = compile_all(modules, targets, workers=given.workers, say=lambda each: print(text_line(each), flush=True))
    if given.json:
        given.json.write_text(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=2))
    failed = sum(outcome.compiled is None for outcome in outcomes)
    print(f"{len(outcomes) - failed} compiled, {failed} failed in {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
